//! What is too deep, too much or cut short is refused, and the server goes on.

use serde_json::json;

use crate::harness::{TestServer, agent, chain};

#[test]
fn a_template_that_nests_without_end_is_refused_and_ends_nothing() {
    let server = TestServer::start();
    for prompt in [
        format!("{{{{ 1{} }}}}", "+1".repeat(10_000)),
        format!("{{{{ input{} }}}}", ".a".repeat(10_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(10_000)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(10_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000)),
    ] {
        let flow = chain("Deep", &[agent("a", "echo", "echo-1", &prompt)]);
        let response = server.post("/api/flows", &flow);
        assert_eq!(response.status, 422);
        let fault = &response.json()["error"]["details"][0];
        assert_eq!(fault["field"], json!("data.nodes[0].data.prompt"));
    }
    assert_eq!(server.get("/api/health").status, 200);
}
