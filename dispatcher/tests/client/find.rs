use schemas::State;
use shoal_dispatcher::client::ClientError;

use crate::support::{Hand, fleet, key, task};

#[tokio::test]
async fn a_task_is_found_by_id_by_key_and_by_prefix() {
    let (_server, client) = fleet().await;
    Hand(&client).run("default.invoice-7", State::Succeeded).await;
    client.submit(task("default.order-42")).await.unwrap();
    for (text, found) in [
        ("order-42", "default.order-42"),
        ("default.order-42", "default.order-42"),
        ("ord", "default.order-42"),
        ("inv", "default.invoice-7"),
        ("default.inv", "default.invoice-7"),
    ] {
        assert_eq!(client.find(text).await.unwrap(), key(found), "{text}");
    }
    for nothing in ["x", "other.order-42", "order-421"] {
        assert!(matches!(client.find(nothing).await, Err(ClientError::NotFound { .. })), "{nothing}");
    }
    assert!(matches!(client.find("a*").await, Err(ClientError::InvalidId(_))));
}

#[tokio::test]
async fn what_fits_several_lists_them() {
    let (_server, client) = fleet().await;
    for task_key in ["default.a", "other.a", "default.ab", "default.ac"] {
        client.submit(task(task_key)).await.unwrap();
    }
    let candidates = async |text| match client.find(text).await {
        Err(ClientError::Ambiguous { candidates, more: false, .. }) => candidates,
        other => panic!("{other:?}"),
    };
    assert_eq!(candidates("a").await, ["default.a", "other.a"], "exact ones come first");
    assert_eq!(client.find("other.a").await.unwrap(), key("other.a"));
    client.submit(task("default.xa")).await.unwrap();
    client.submit(task("default.xb")).await.unwrap();
    assert_eq!(candidates("x").await, ["default.xa", "default.xb"]);
}
