//! What the agent leaves on the node for the plugin, which must do without it at times.

use serde_json::json;

use crate::world::{World, in_a_node};

#[test]
fn the_plugin_is_left_a_way_to_the_api_server_that_goes_with_the_mesh() {
    in_a_node(async |world: &mut World| {
        let left = enroll::config::access_file(&world.run_dir());
        world.start_agent();
        world.until("it is there", |_| left.exists()).await;
        let text = std::fs::read_to_string(&left).unwrap();
        assert!(
            text.contains("\"token\":\"the plugin's token\"") && text.contains("https://10.0.0.1:443"),
            "{text}"
        );
        world.stop_agent().await;
        assert!(left.exists(), "while the agent is away it is needed");
        world.api.remove_daemonset();
        world.start_agent();
        world.until("the agent serves", World::ready).await;
        world.stop_agent().await;
        assert!(!left.exists());
    });
}

/// The plugin judges as the agent does, so it must be told what the agent was told.
#[test]
fn selectors_of_ones_own_stand_in_the_plugins_configuration_and_the_usual_ones_do_not() {
    in_a_node(async |world: &mut World| {
        let entry = |world: &World| -> serde_json::Value {
            let list: serde_json::Value = serde_json::from_str(&world.conflist()).unwrap();
            list["plugins"][1].clone()
        };
        world.start_agent();
        world.until("the plugin is in the list", |w| entry(w)["type"] == "ambit-cni").await;
        assert!(entry(world).get("enablement_selectors").is_none(), "{}", entry(world));
        world.stop_agent().await;
        let own = json!([{"podSelector": {"matchLabels": {"mesh": "yes"}}}]);
        world.selectors = serde_json::from_value(own).unwrap();
        world.start_agent();
        world.until("the list was written anew", |w| entry(w).get("enablement_selectors").is_some()).await;
        let told = entry(world)["enablement_selectors"].clone();
        let told: Vec<enroll::eligibility::SelectorPair> = serde_json::from_value(told).unwrap();
        assert_eq!(told, world.selectors);
    });
}
