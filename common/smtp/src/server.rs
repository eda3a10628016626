//! The server side: framing, commands, the session (RFC 5321).
