//! The client side: greeting to QUIT, for SMTP (RFC 5321) and LMTP (RFC 2033).
