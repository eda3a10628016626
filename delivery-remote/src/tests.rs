//! The program against real sockets.
