use super::*;
use proptest::prelude::*;

fn waiting(run_id: impl ToString) -> Waiting {
    Waiting { run_id: run_id.to_string(), waiter: None }
}

fn drained(mut queue: Queue) -> Vec<RunId> {
    std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.run_id).collect()
}

#[test]
fn a_flow_with_many_runs_does_not_starve_the_others() {
    let mut queue = Queue::default();
    for at in 0..4 {
        queue.push(1, waiting(format!("many {at}")));
    }
    queue.push(2, waiting("one"));
    queue.push(3, waiting("other 0"));
    queue.push(3, waiting("other 1"));
    assert_eq!(
        drained(queue),
        ["many 0", "one", "other 0", "many 1", "other 1", "many 2", "many 3"]
    );
}

proptest! {
    #[test]
    fn runs_are_dequeued_once_and_in_order_per_flow(
        steps in proptest::collection::vec((0i64..5, 0usize..4), 0..100),
    ) {
        let mut queue = Queue::default();
        let mut expected: HashMap<FlowId, VecDeque<usize>> = HashMap::new();
        for (at, (flow, what)) in steps.into_iter().enumerate() {
            match what {
                0 | 1 => {
                    queue.push(flow, waiting(at));
                    expected.entry(flow).or_default().push_back(at);
                }
                2 => {
                    let popped = queue.pop();
                    let at = popped.map(|popped| popped.run_id.parse::<usize>().unwrap());
                    let firsts: Vec<_> = expected.values_mut().filter(|all| all.front() == at.as_ref()).collect();
                    prop_assert_eq!(firsts.len(), usize::from(at.is_some()));
                    for all in firsts {
                        all.pop_front();
                    }
                    expected.retain(|_, all| !all.is_empty());
                    prop_assert!(at.is_some() || expected.is_empty());
                }
                _ => {
                    let last = expected.get_mut(&flow).and_then(VecDeque::pop_back);
                    let name = last.unwrap_or(usize::MAX).to_string();
                    prop_assert_eq!(queue.remove(&name).is_some(), last.is_some());
                    expected.retain(|_, all| !all.is_empty());
                }
            }
            prop_assert_eq!(queue.is_empty(), expected.is_empty());
        }
    }
}
