use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Map;

use super::generators::{answer, any_json, piece_parts, text};
use super::openai_stream::openai_stream;
use super::{context, joined_deltas, read_stream, stream_of, usage};
use crate::translation::responses::{EventReader, read_reply, write_reply};
use crate::translation::{Part, PartKind, Piece, Reply, Stop, StreamReader, pieces_of};

fn reply(parts: Vec<Part>, stop: Stop) -> Reply {
    let (id, model) = ("resp_7".to_owned(), "claude".to_owned());
    Reply { id, model, parts, stop: Some(stop), extra: Map::new() }
}

proptest! {
    #[test]
    fn an_answer_of_this_api_is_unchanged(body in answer()) {
        let again = write_reply(&read_reply(&body), &usage(), &context());
        for (key, value) in body.as_object().unwrap() {
            prop_assert_eq!(&again[key], value, "{}", key);
        }
    }

    #[test]
    fn a_stream_says_the_same_as_the_answer(body in answer(), variant in 0..6) {
        let expected = joined_deltas(pieces_of(&read_reply(&body)));
        let mut events = openai_stream(&body);
        // Without other events, the place of a part without deltas is unknown.
        let no_delta = |pair: &[Piece]| matches!(pair, [Piece::Open(_), Piece::Close | Piece::Signature(_)]);
        prop_assume!(variant != 1 || !expected.windows(2).any(no_delta));
        match variant {
            // Only deltas and the last event.
            1 => events.retain(|(name, _)| name.ends_with(".delta") || name.ends_with("ed") && !name.ends_with(".added") || name.ends_with("incomplete")),
            // Only complete items.
            2 => events.retain(|(name, _)| name.starts_with("response.output_item.") || name.matches('.').count() == 1),
            // No `done` apart from that of items.
            3 => events.retain(|(name, _)| !name.ends_with(".done") || name == "response.output_item.done"),
            4 => events.iter_mut().for_each(|(_, data)| { data.as_object_mut().unwrap().remove("output_index"); }),
            5 => events.iter_mut().for_each(|(_, data)| { data.as_object_mut().unwrap().remove("item_id"); }),
            _ => {}
        }
        let expects_stop = events.pop().unwrap();
        let mut reader = EventReader::default();
        let mut pieces = Vec::new();
        for (name, data) in events.iter().chain([&expects_stop]) {
            reader.event(name, data, &mut pieces);
        }
        reader.end(&mut pieces);
        prop_assert_eq!(joined_deltas(pieces), expected, "variant {}", variant);
    }

    #[test]
    fn the_order_of_events_of_different_items_is_free(
        body in answer(),
        picks in vec(0..64_usize, 0..200),
    ) {
        let (added, others): (Vec<_>, Vec<_>) =
            openai_stream(&body).into_iter().partition(|(name, _)| name.ends_with(".added"));
        let (of_items, of_answer): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(_, data)| data["output_index"].is_u64());
        let mut queues: BTreeMap<u64, VecDeque<_>> = BTreeMap::new();
        for event in of_items {
            queues.entry(event.1["output_index"].as_u64().unwrap()).or_default().push_back(event);
        }
        let (started, ended) = of_answer.split_at(of_answer.len() - 1);
        let mut events = [started, &added].concat();
        for pick in picks.into_iter().chain(std::iter::repeat(0)) {
            let Some(index) = queues.keys().nth(pick % queues.len().max(1)).copied() else {
                break;
            };
            match queues.get_mut(&index).and_then(VecDeque::pop_front) {
                Some(event) => events.push(event),
                None => drop(queues.remove(&index)),
            }
        }
        events.extend_from_slice(ended);
        let expected = joined_deltas(pieces_of(&read_reply(&body)));
        prop_assert_eq!(read_stream(&events), expected);
    }

    #[test]
    fn a_written_stream_is_read_back(parts in piece_parts(), limited in any::<bool>()) {
        let has_calls = parts.iter().any(|part| matches!(part.kind, PartKind::ToolCall { .. }));
        let has_refusal = parts.iter().any(|part| matches!(part.kind, PartKind::Refusal(_)));
        let stop = match (limited, has_calls, has_refusal) {
            (true, ..) => Stop::MaxTokens,
            (_, true, _) => Stop::ToolCalls,
            (_, _, true) => Stop::Refused,
            _ => Stop::End,
        };
        let reply = reply(parts, stop);
        let pieces = pieces_of(&reply);
        let events = stream_of(&pieces);
        prop_assert_eq!(read_stream(&events), joined_deltas(pieces));
        // The last event has the answer in one piece.
        let whole = write_reply(&reply, &usage(), &context());
        let mut last = events.last().unwrap().1["response"].clone();
        if limited {
            // The items of a stream are complete before the limit is known.
            last["output"] = whole["output"].clone();
        }
        prop_assert_eq!(last, whole);
    }

    #[test]
    fn no_answer_panics(body in any_json(), events in vec((text(), any_json()), 0..20)) {
        let reply = read_reply(&body);
        write_reply(&reply, &usage(), &context());
        let pieces = read_stream(&events);
        let mut is_open = false;
        for piece in pieces {
            match piece {
                Piece::Open(_) => prop_assert!(!std::mem::replace(&mut is_open, true)),
                Piece::Close => prop_assert!(std::mem::replace(&mut is_open, false)),
                Piece::Delta(_) | Piece::Signature(_) => prop_assert!(is_open),
                Piece::Begin { .. } | Piece::Stop(_) => prop_assert!(!is_open),
            }
        }
    }
}
