//! Frontends, guests and clients that mean harm.

mod blame;
mod hostile_control;
mod hostile_frontend;
mod log_floods;
