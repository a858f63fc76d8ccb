//! Finds the elements of a JSON array while it arrives. Pure.

/// The position in an array, or in a sequence of objects without one.
#[derive(Debug, Default)]
pub(super) struct JsonArray {
    depth: usize,
    /// The depth around an element: 1 within the array's brackets, 0 without an array.
    depth_around: usize,
    in_string: bool,
    is_escaped: bool,
    /// The index of the first byte of the current element; none between elements.
    element: Option<usize>,
}

/// The end of a part of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// An object or array from this index.
    Element(usize),
    Close,
}

impl JsonArray {
    /// Reads the next byte, at index `at`. Returns the part that it ends.
    pub(super) fn read(&mut self, byte: u8, at: usize) -> Option<Part> {
        if self.in_string {
            self.in_string = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            return None;
        }
        match byte {
            b'"' => self.in_string = true,
            // The array's own bracket.
            b'[' if self.depth == 0 => (self.depth, self.depth_around) = (1, 1),
            b'{' | b'[' => {
                if self.depth == self.depth_around {
                    self.element = Some(at);
                }
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth < self.depth_around {
                    self.depth_around = 0;
                    return Some(Part::Close);
                }
                if self.depth == self.depth_around {
                    return self.element.take().map(Part::Element);
                }
            }
            _ => {}
        }
        None
    }

    /// Moves the indices after `count` bytes at the start were dropped.
    pub(super) fn drop_start(&mut self, count: usize) {
        self.element = self.element.map(|at| at.saturating_sub(count));
    }
}
