// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Edits of an XML text. What no edit names stays as it was, byte by byte: comments, order, white space, elements and
//! namespaces that nothing here knows.

use std::ops::Range;

use roxmltree::Node;

/// Edits of one text, in any order, none in the range of another.
#[derive(Debug, Default)]
pub(crate) struct Splices(Vec<(Range<usize>, String)>);

impl Splices {
    /// Replaces an element with all that is in it.
    pub(crate) fn replace(&mut self, element: Node<'_, '_>, with: &str) {
        self.0.push((element.range(), with.to_owned()));
    }

    /// Adds an attribute to the start tag; the element must not have it.
    pub(crate) fn add_attribute(&mut self, element: Node<'_, '_>, name: &str, value: &str) {
        let at = name_end(element);
        self.0.push((at..at, format!(" {name}=\"{}\"", escaped(value))));
    }

    /// Adds text at the end of an element.
    pub(crate) fn append(&mut self, element: Node<'_, '_>, text: &str) {
        let whole = &element.document().input_text()[element.range()];
        let start = element.range().start;
        match whole.strip_suffix("/>") {
            Some(open) => {
                let name = &element.document().input_text()[start + 1..name_end(element)];
                let (from, end) = (start + open.len(), format!("</{name}>"));
                let range = from..element.range().end;
                match self.0.iter_mut().find(|(other, _)| *other == range) {
                    // Opened before.
                    Some((_, inner)) => inner.insert_str(inner.len() - end.len(), text),
                    None => self.0.push((range, format!(">{text}{end}"))),
                }
            }
            // An end tag is the last thing of an element, and holds no other.
            None => {
                let at = start + whole.rfind("</").unwrap_or(whole.len());
                self.0.push((at..at, text.to_owned()));
            }
        }
    }

    /// The text with all edits.
    pub(crate) fn apply(mut self, text: &str) -> String {
        // Stable: what is appended to one element stays in its order.
        self.0.sort_by_key(|(range, _)| (range.start, range.end));
        let mut edited = String::with_capacity(text.len() + 1024);
        let mut kept_to = 0;
        for (range, with) in self.0 {
            edited.push_str(&text[kept_to..range.start]);
            edited.push_str(&with);
            kept_to = range.end;
        }
        edited.push_str(&text[kept_to..]);
        edited
    }
}

/// Where the name in the start tag ends, as an offset in the document.
fn name_end(element: Node<'_, '_>) -> usize {
    let start = element.range().start;
    let tag = &element.document().input_text()[start..element.range().end];
    let end = tag.find(|c: char| c.is_ascii_whitespace() || c == '/' || c == '>');
    start + end.unwrap_or(tag.len())
}

/// A value as it stands in an attribute with double quotes.
pub(crate) fn escaped(value: &str) -> String {
    value.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    fn edited(text: &str, edit: impl FnOnce(&mut Splices, Node<'_, '_>)) -> String {
        let document = Document::parse(text).unwrap();
        let mut splices = Splices::default();
        edit(&mut splices, document.root_element());
        splices.apply(text)
    }

    #[test]
    fn append_opens_an_empty_element() {
        let add = |splices: &mut Splices, root: Node<'_, '_>| {
            splices.append(root, "<c/>");
            splices.append(root, "<d/>");
        };
        assert_eq!(edited("<a b='/>' />", add), "<a b='/>' ><c/><d/></a>");
        assert_eq!(edited("<p:a xmlns:p='u'/>", add), "<p:a xmlns:p='u'><c/><d/></p:a>");
        assert_eq!(edited("<a><!-- </a> --></a >\n", add), "<a><!-- </a> --><c/><d/></a >\n");
    }

    #[test]
    fn edits_of_an_element_and_of_a_child_add_up() {
        let text = edited("<a>\n<b/> text <!-- c --></a>", |splices, root| {
            splices.append(root, "<z/>");
            splices.replace(root.first_element_child().unwrap(), "<y/>");
            splices.add_attribute(root, "k", "\"<&");
        });
        assert_eq!(text, "<a k=\"&quot;&lt;&amp;\">\n<y/> text <!-- c --><z/></a>");
    }
}
