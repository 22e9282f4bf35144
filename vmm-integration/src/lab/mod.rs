//! The lab: experiments and races over any guest, records that are kept, and a report to look at.
//!
//! | file | what |
//! |---|---|
//! | [`race`] | what reporting can collide with, in the model and in real Linux |

pub mod race;
