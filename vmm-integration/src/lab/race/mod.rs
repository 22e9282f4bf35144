//! Races: what free page reporting can collide with, in real Linux and in the model.
//!
//! | file | what |
//! |---|---|
//! | [`linux`] | memory blocks going offline and online in a real guest that reports |

pub mod linux;
