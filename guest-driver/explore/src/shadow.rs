// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! State that is kept beside a model's own, to check the model against.

use core::fmt::Debug;
use core::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What is known of each page, zone or task beside the model.
///
/// It is no scheduling point: looking does not change what can happen.
#[derive(Debug)]
pub struct Shadow<T>(Mutex<Vec<T>>);

impl<T> Shadow<T> {
    /// One item a page, zone or task.
    pub fn new(items: Vec<T>) -> Self {
        Self(Mutex::new(items))
    }

    /// Calls `visit` with all items, which nothing else changes meanwhile.
    pub fn with<R>(&self, visit: impl FnOnce(&mut Vec<T>) -> R) -> R {
        visit(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Visits the items of `range` that exist.
    pub fn each(&self, range: Range<usize>, mut visit: impl FnMut(usize, &mut T)) {
        self.with(|items| {
            let (first, count) = (range.start, range.len());
            for (at, item) in items.iter_mut().enumerate().skip(first).take(count) {
                visit(at, item);
            }
        });
    }
}
