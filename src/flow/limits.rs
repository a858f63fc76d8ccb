//! Bounds the work and the memory of one rendering.
//!
//! minijinja bounds the instructions of a template, but one instruction can repeat, join or sort
//! values of any size. So every operator, filter and function reports its work here, and no value
//! exceeds a size, so that later steps on it are bounded too.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// The name of the [`Meter`] in a template's variables; no template can spell it.
pub const METER: &str = "meter of the rendering";

/// Limits the size of a value, with all values in it, in bytes.
const VALUE_BYTES_MAX: u64 = 32 << 20;
/// Limits the number of values in a value.
const VALUE_PARTS_MAX: u64 = 1_000_000;
/// Limits the nesting of a value. Dropping one needs stack for each level.
const VALUE_DEPTH_MAX: usize = 200;
/// Limits the size of all values that a rendering computes, in bytes.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Limits the values that all steps of a rendering look at: about a second.
const WORK_MAX: u64 = 20_000_000;
/// Limits the text that a rendering writes, with the text that `{% set %}` blocks and macros capture.
const WRITTEN_BYTES_MAX: u64 = 20 << 20;
/// The memory of a value in a list, in bytes.
const PART_BYTES: u64 = 32;
/// A text of this many bytes is as much work as one value.
const TEXT_BYTES_PER_STEP: u64 = 64;

/// Returns why a rendering must stop, if it must.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn() -> Option<&'static str> + Send + Sync>);

impl Watch {
    pub fn new(stop: impl Fn() -> Option<&'static str> + Send + Sync + 'static) -> Self {
        Self(Arc::new(stop))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Counts the work of one rendering.
#[derive(Debug, Default)]
pub struct Meter {
    watch: Option<Watch>,
    work: AtomicU64,
    memory: AtomicU64,
    written: AtomicU64,
}

impl Object for Meter {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// The extent of a value with all values in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub parts: u64,
    pub bytes: u64,
    pub depth: u64,
}

fn over(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

impl Meter {
    pub fn new(watch: Option<Watch>) -> Self {
        Self { watch, ..Self::default() }
    }

    /// Returns the meter of the rendering that `state` belongs to.
    pub fn of(state: &mut State<'_, '_>) -> Arc<Self> {
        if let Some(meter) = state.get_extension::<Arc<Self>>() {
            return Arc::clone(meter);
        }
        let meter = state.lookup(METER).and_then(|value| value.downcast_object::<Self>());
        Arc::clone(state.get_or_insert_extension(meter.unwrap_or_default()))
    }

    /// Counts the steps of an operation before it runs.
    ///
    /// # Errors
    /// Fails if the rendering must stop or exceeds [`WORK_MAX`].
    pub fn work(&self, steps: u64) -> Result<(), Error> {
        if let Some(why) = self.watch.as_ref().and_then(|watch| (watch.0)()) {
            return Err(over(why));
        }
        let steps = steps.saturating_add(1);
        if self.work.fetch_add(steps, Ordering::Relaxed).saturating_add(steps) > WORK_MAX {
            return Err(over("the template does too much work on long lists or texts"));
        }
        Ok(())
    }

    /// Counts the memory of a value before it is computed.
    ///
    /// # Errors
    /// Fails if the value is too large, or all values of the rendering are.
    pub fn memory(&self, bytes: u64) -> Result<(), Error> {
        if bytes > VALUE_BYTES_MAX {
            return Err(over(format!(
                "a value would have more than {} MiB",
                VALUE_BYTES_MAX >> 20
            )));
        }
        let sum = self.memory.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if sum > MEMORY_BYTES_MAX {
            return Err(over(format!(
                "the template computes more than {} MiB of values",
                MEMORY_BYTES_MAX >> 20
            )));
        }
        Ok(())
    }

    /// Counts text before it is written.
    ///
    /// # Errors
    /// Fails if the rendering writes too much.
    pub fn write(&self, bytes: u64) -> Result<(), Error> {
        self.written.fetch_add(bytes, Ordering::Relaxed);
        if self.is_full() {
            return Err(over("the template writes too much text"));
        }
        Ok(())
    }

    /// Returns whether the rendering wrote too much text.
    pub fn is_full(&self) -> bool {
        self.written.load(Ordering::Relaxed) > WRITTEN_BYTES_MAX
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Measures a value, and counts that as work.
    ///
    /// # Errors
    /// Fails if the value is too large or too deep, or the rendering must stop.
    pub fn weigh(&self, value: &Value) -> Result<Extent, Error> {
        let mut extent = Extent::default();
        let weighed = extent.add(value, 0);
        self.work(extent.parts + extent.bytes / TEXT_BYTES_PER_STEP)?;
        weighed.map(|()| extent)
    }

    /// Checks a value that an operation returned, and counts its memory.
    ///
    /// # Errors
    /// Same as [`Meter::weigh`] and [`Meter::memory`].
    pub fn keep(&self, value: Value) -> Result<Value, Error> {
        self.work(0)?;
        match value.kind() {
            ValueKind::String | ValueKind::Bytes => {
                self.memory(value.as_bytes().map_or(0, <[u8]>::len) as u64)?;
            }
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
                self.weigh(&value)?;
                self.memory((value.len().unwrap_or_default() as u64).saturating_mul(PART_BYTES))?;
            }
            _ => {}
        }
        Ok(value)
    }
}

impl Extent {
    fn add(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.parts += 1;
        if self.parts > VALUE_PARTS_MAX {
            return Err(over(format!("a list has more than {VALUE_PARTS_MAX} values")));
        }
        if depth > VALUE_DEPTH_MAX {
            return Err(over(format!("a value is nested more than {VALUE_DEPTH_MAX} levels deep")));
        }
        self.depth = self.depth.max(depth as u64);
        let bytes = value.as_bytes().map_or(0, <[u8]>::len) as u64;
        self.bytes += PART_BYTES + bytes;
        if self.bytes > VALUE_BYTES_MAX {
            return Err(over(format!("a value has more than {} MiB", VALUE_BYTES_MAX >> 20)));
        }
        let is_map = match value.kind() {
            ValueKind::Map => true,
            ValueKind::Seq | ValueKind::Iterable => false,
            _ => return Ok(()),
        };
        for item in value.try_iter()? {
            self.add(&item, depth + 1)?;
            if is_map {
                self.add(&value.get_item(&item)?, depth + 1)?;
            }
        }
        Ok(())
    }
}
