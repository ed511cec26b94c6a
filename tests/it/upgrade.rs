//! The main job: a plan, its height, the switch, the trial, the commit.

use crate::support::{Home, until};

#[test]
fn a_scheduled_upgrade_is_carried_out_at_its_height_and_committed() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &[]);
    visor.until_up();
    home.release("v2", "");
    home.run(&["upgrade", "schedule", "v2", "40"]).code(0);
    home.until_status("the plan is staged", |s| s["upgrade"]["phase"] == "staged");
    assert_eq!(home.current(), "genesis");
    visor.until_release("v2");
    let status = home.until_status("it is committed", |s| s["last_upgrade"]["result"] == "committed");
    assert_eq!(home.current(), "v2");
    assert_eq!(status["upgrade"], serde_json::Value::Null);
    let starts = home.events("start");
    assert_eq!(starts.iter().map(|e| e[2].as_str()).collect::<Vec<_>>(), ["genesis", "v2"]);
    assert_eq!(home.events("term").len(), 1, "TERM once");
    let stopped_at: u64 = home.events("stop")[0][4].parse().unwrap();
    assert!(stopped_at >= 39, "not early: due when the head is height - 1, it stopped at {stopped_at}");
    until("blocks go on", || home.status()["height"].as_u64().filter(|height| *height > stopped_at + 5));
    let history = home.history();
    assert_eq!(history.len(), 1);
    assert_eq!((history[0]["name"].as_str(), history[0]["result"].as_str()), (Some("v2"), Some("committed")));
    assert_eq!(history[0]["clean_stop"], true);
    visor.stop();
}
