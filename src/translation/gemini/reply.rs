//! Answers in one piece: <https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse>.

use crate::event::Usage;
use crate::translation::{Context, Reply};
use serde_json::Value;
pub fn read_reply(_: &Value) -> Reply {
    todo!()
}
pub fn write_reply(_: &Reply, _: &Usage, _: &Context) -> Value {
    todo!()
}
