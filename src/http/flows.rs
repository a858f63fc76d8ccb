//! `/api/flows`: saved flows.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::reply::{self, Answer, With, encode};
use super::request::{Query, read_json};
use super::{Context, flow_list};
use crate::engine::Engine;
use crate::error::{Error, Fault, Result};
use crate::flow::parse_json;
use crate::ids::FlowId;
use crate::listener::Presence;
use crate::store::{Change, FlowRecord, NewFlow, Receipt};
use crate::time::Timestamp;

const NAME_BYTES_MAX: usize = 200;

/// Keys that the server sets; a document cannot set them.
const OWN_KEYS: &[&str] = &["id", "node_count", "inputs", "created_at", "updated_at"];

pub fn list(context: &Context, mut query: Query, client: &Presence) -> Answer {
    if query.take("summary").unwrap_or(false) {
        return flow_list::list(context, query, client);
    }
    let limit = query.take_limit();
    let before: Option<FlowId> = query.take("before");
    query.finish()?;
    let mut sizes = context.store.flow_sizes(before, limit + 1)?;
    let next = reply::cut(&mut sizes, limit, |(id, _)| *id);
    let bytes: usize = sizes.iter().map(|(_, bytes)| bytes).sum();
    let (store, engine) = (Arc::clone(&context.store), context.engine.clone());
    let views = sizes.into_iter().filter_map(move |(id, _)| match store.flow(id) {
        Ok(record) => Some(Ok(view(&engine, &record))),
        // It was deleted since.
        Err(Error::NotFound(_)) => None,
        Err(error) => Some(Err(error)),
    });
    if bytes <= reply::BYTES_AT_ONCE_MAX {
        return Ok(reply::list(&views.collect::<Result<Vec<_>>>()?, next));
    }
    let items = views.enumerate().map(|(at, view)| {
        let separator: &[u8] = if at == 0 { b"" } else { b"," };
        Ok([separator, &encode(&view?)?].concat())
    });
    let begin = std::iter::once(Ok(b"{\"items\":[".to_vec()));
    let end =
        std::iter::once_with(
            move || Ok([b"],\"next\":", encode(&next)?.as_slice(), b"}"].concat()),
        );
    Ok(reply::json_pieces(begin.chain(items).chain(end)))
}

pub fn create(context: &Context, body: &[u8]) -> Answer {
    let (name, document) = check(context, read_json(body)?)?;
    let change = Change::CreateFlow(NewFlow { name, document, origin: None, at: Timestamp::now() });
    let Receipt::Flow(id) = context.journal.commit_one(change)? else {
        return Err(Error::internal("the journal returned no id for the flow").into());
    };
    let location = format!("/api/flows/{id}");
    Ok(reply::json(201, &view(&context.engine, &context.store.flow(id)?))
        .with("location", location))
}

pub fn get(context: &Context, id: FlowId) -> Answer {
    Ok(reply::json(200, &view(&context.engine, &context.store.flow(id)?)))
}

pub fn replace(context: &Context, id: FlowId, body: &[u8]) -> Answer {
    let (name, document) = check(context, read_json(body)?)?;
    let flow = NewFlow { name, document, origin: None, at: Timestamp::now() };
    let change = Change::UpdateFlow { id, flow };
    context.journal.commit_one(change)?;
    context.optimizer.request_review(id);
    get(context, id)
}

pub fn delete(context: &Context, id: FlowId) -> Answer {
    context.journal.commit_one(Change::DeleteFlow(id))?;
    context.scheduler.reload();
    context.optimizer.request_review(id);
    Ok(reply::empty())
}

fn check(context: &Context, body: Value) -> Result<(String, String)> {
    check_document(body, &|data| context.engine.parse(data).map(drop))
}

/// Returns a flow's name and document, or all its faults. `check_graph` checks `data`.
pub fn check_document(
    body: Value,
    check_graph: &dyn Fn(&Value) -> Result<()>,
) -> Result<(String, String)> {
    let message = "cannot save the flow";
    let Value::Object(mut document) = body else {
        return Err(Error::invalid(message, "", "must be an object with `name` and `data`"));
    };
    OWN_KEYS.iter().for_each(|key| drop(document.remove(*key)));
    let mut faults = Vec::new();
    let name = match document.get("name") {
        Some(Value::String(name)) if (1..=NAME_BYTES_MAX).contains(&name.trim().len()) => {
            name.trim().to_owned()
        }
        _ => {
            let fault = format!("must be a string of 1 to {NAME_BYTES_MAX} bytes");
            faults.push(Fault::new("name", fault));
            String::new()
        }
    };
    let data = data_of(&mut document, &mut faults);
    if let Err(Error::Invalid { faults: of_graph, .. }) = check_graph(&data) {
        // Report one fault for missing `data`, not three.
        if !faults.iter().any(|fault| fault.field == "data") {
            faults.extend(of_graph);
        }
    }
    if !faults.is_empty() {
        return Err(Error::Invalid { message: message.into(), faults });
    }
    document.insert("data".into(), data);
    Ok((name, Value::Object(document).to_string()))
}

/// Returns the graph; some editors send it as a JSON string.
fn data_of(document: &mut Map<String, Value>, faults: &mut Vec<Fault>) -> Value {
    let data = match document.remove("data") {
        Some(Value::String(text)) => {
            parse_json(&text).map_err(|error| format!("is a string, but not valid JSON: {error}"))
        }
        data => Ok(data.unwrap_or_default()),
    };
    let fault = match data {
        Ok(data @ Value::Object(_)) => return data,
        Ok(_) => "must be an object with `nodes` and `edges`".to_owned(),
        Err(fault) => fault,
    };
    faults.push(Fault::new("data", fault));
    Value::Null
}

/// Returns the document as it was posted, with the server's own keys.
fn view(engine: &Engine, record: &FlowRecord) -> Value {
    let document: Value = serde_json::from_str(&record.document).unwrap_or_default();
    let graph = engine.parse(&document["data"]).ok();
    let inputs: Vec<&str> = graph.iter().flat_map(|graph| graph.inputs()).collect();
    let mut view = json!({
        "id": record.id,
        "name": record.name,
        "node_count": document["data"]["nodes"].as_array().map_or(0, Vec::len),
        "inputs": inputs,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    });
    if let (Value::Object(view), Value::Object(document)) = (&mut view, document) {
        for (key, value) in document {
            view.entry(key).or_insert(value);
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: Value) -> Result<(String, String)> {
        check_document(body, &|data| {
            crate::flow::Graph::parse(data, &|_| true)
                .map(drop)
                .map_err(|faults| Error::Invalid { message: String::new(), faults })
        })
    }

    fn data() -> Value {
        json!({"nodes": [{"id": "a", "data": {"provider": "echo", "model": "m", "prompt": "p"}}], "edges": []})
    }

    #[test]
    fn unknown_keys_are_kept_and_reserved_keys_removed() {
        let body = json!({"id": 99, "name": " x ", "color": "red", "data": data()});
        let (name, document) = check(body).unwrap();
        assert_eq!(name, "x");
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["color"], "red");
        assert!(document.get("id").is_none());
    }

    #[test]
    fn data_may_be_a_string_of_json() {
        let (_, document) = check(json!({"name": "x", "data": data().to_string()})).unwrap();
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["data"], data());
    }

    #[test]
    fn all_errors_are_listed_together() {
        let Err(Error::Invalid { faults, .. }) = check(json!({"name": 3, "data": {"nodes": []}}))
        else {
            panic!("accepted");
        };
        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["name", "data.nodes"]);
        assert!(check(json!([1])).is_err());
        assert!(check(json!({"name": "x", "data": "{oops"})).is_err());
    }
}
