// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The order of names that have numbers in them.

use crate::size::Size;

/// A sort key of `name`: numbers by value (p50 before p100), sizes by bytes (256G before 1T), all else
/// by letter.
pub fn natural(name: &str) -> Vec<(String, u64)> {
    let word = |word: &str| {
        let text: String = word.chars().take_while(|c| !c.is_ascii_digit()).collect();
        let number = &word[text.len()..];
        match number.parse::<Size>() {
            Ok(Size(worth)) => (text, worth),
            Err(()) => (word.to_owned(), 0),
        }
    };
    name.split(|c: char| !c.is_ascii_alphanumeric()).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_in_names_sort_by_value() {
        for sorted in [
            vec!["busy-1G", "busy-16G", "busy-256G", "busy-1T", "busy-16T", "quiet-1G"],
            vec!["1-drop-ack", "2-drop-ack", "11-delay-ack"],
            vec!["page_fault1-linux", "page_fault1-model", "page_fault2-model", "page_fault10"],
            vec!["back-p50", "back-p99", "back-p100", "resident"],
        ] {
            let mut again = sorted.clone();
            again.reverse();
            again.sort_by_cached_key(|name| natural(name));
            assert_eq!(again, sorted);
        }
    }
}
