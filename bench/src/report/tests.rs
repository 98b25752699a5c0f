//! When a row says something, and when it refuses to.

use super::*;

/// Rounds of Loden's beside a baseline of 1, so that they are the ratios as well.
fn row(loden: &[f64]) -> Row {
    Row::new("x", "ms", loden).beside("b", &vec![1.0; loden.len()])
}

fn told(row: &Row) -> (Option<f64>, Option<bool>) {
    let record = row.record();
    (record.ratio, record.holds)
}

#[test]
fn percentiles_are_values_that_were_seen() {
    let values: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!((percentile(&values, 50.0), percentile(&values, 99.0)), (50.0, 99.0));
    assert_eq!(percentile(&[7.0], 99.0), 7.0);
}

#[test]
fn a_ratio_is_the_median_of_the_rounds_own() {
    let (loden, baseline) = ([2.0, 30.0, 4.0, 4.0, 40.0], [1.0, 10.0, 3.0, 2.0, 8.0]);
    let row = Row::new("x", "ms", &loden).beside("b", &baseline);
    let record = row.record();
    assert_eq!((record.loden, record.baseline, record.ratio), (4.0, Some(3.0), Some(2.0)));
}

#[test]
fn a_ratio_is_stated_when_all_five_rounds_agree_which_is_larger() {
    assert_eq!(told(&row(&[0.5, 0.7, 0.9, 0.6, 0.99])).0, Some(0.7));
    assert_eq!(told(&row(&[1.5, 1.1, 1.0, 1.3, 1.2])).0, Some(1.2));
    let noisy = row(&[0.5, 0.7, 0.9, 0.6, 1.1]);
    assert_eq!(told(&noisy).0, None);
    assert_eq!(noisy.record().untold, Some("too noisy"));
    assert_eq!(noisy.cells()[5..7], ["too noisy", "0.50 to 1.10"]);
    assert!((noisy.record().spread - 0.6 / 0.7).abs() < 1e-9, "the spread stays visible");
}

#[test]
fn rounds_close_around_one_show_that_there_is_no_difference() {
    let same = row(&[0.99, 1.02, 1.01, 0.97, 1.04]);
    assert_eq!(told(&same).0, Some(1.01));
    assert_eq!(same.record().untold, None);
    assert_eq!(same.cells()[5], "same");
}

#[test]
fn a_budget_is_judged_when_all_five_rounds_agree() {
    let rounds = [2.0, 2.5, 3.0, 2.2, 2.4];
    let holds = |budget| told(&row(&rounds).within(budget)).1;
    assert_eq!(holds(Budget::Value(3.0)), Some(true));
    assert_eq!(holds(Budget::Value(2.9)), None);
    assert_eq!(holds(Budget::Value(2.0)), None);
    assert_eq!(holds(Budget::Value(1.9)), Some(false));
    assert_eq!(holds(Budget::Ratio(3.0)), Some(true));
    assert_eq!(holds(Budget::Ratio(2.9)), None);
    assert_eq!(holds(Budget::Ratio(1.9)), Some(false));
    let verdict = |most| row(&rounds).within(Budget::Value(most)).cells()[8].clone();
    assert_eq!([3.0, 2.9, 1.9].map(verdict), ["holds", "too noisy", "ABOVE"]);
}

#[test]
fn fewer_than_five_rounds_are_no_verdict() {
    for rounds in 0..5 {
        let row = row(&vec![0.5; rounds]).within(Budget::Value(1.0));
        assert_eq!(told(&row), (None, None));
        assert_eq!(row.record().untold, Some("too few rounds"));
        assert_eq!(row.cells()[8], "too few rounds");
    }
    assert_eq!(row(&[0.5; 4]).cells()[5], "too few rounds");
    assert_eq!(told(&row(&[0.5; 5]).within(Budget::Value(1.0))), (Some(0.5), Some(true)));
}

#[test]
fn a_budget_can_hold_where_it_cannot_be_told_which_is_larger() {
    let row = row(&[0.8, 0.9, 1.1, 0.9, 1.0]).within(Budget::Ratio(1.2));
    assert_eq!(told(&row), (None, Some(true)));
}

#[test]
fn a_budget_of_the_baseline_is_not_judged_without_one() {
    let alone = Row::new("x", "ms", &[1.0; 5]).within(Budget::Ratio(1.2));
    assert_eq!(told(&alone), (None, None));
    let none = [0.0; 5];
    let zero = Row::new("lost", "packets", &none).beside("b", &none).within(Budget::Value(0.0));
    assert_eq!(told(&zero), (None, Some(true)));
    assert_eq!((alone.record().untold, zero.record().untold), (None, None));
}

#[test]
fn more_rounds_can_bear_outliers() {
    assert_eq!([1, 5, 8, 9, 11, 12, 15].map(outliers), [0, 0, 0, 1, 1, 2, 3]);
    let mut rounds = [0.5; 9];
    rounds[3] = 7.0;
    assert_eq!(told(&row(&rounds)).0, Some(0.5));
    rounds[4] = 7.0;
    assert_eq!(told(&row(&rounds)).0, None);
}

#[test]
fn while_others_have_the_cpus_no_budget_of_a_ratio_is_judged() {
    let mut of_ratio = row(&[0.5; 5]).within(Budget::Ratio(1.0));
    assert_eq!(of_ratio.holds(), Told::Clearly(true));
    of_ratio.disturb();
    assert_eq!(of_ratio.holds(), Told::TooNoisy);
    let table = table(&[("a.part", vec![of_ratio])], 5);
    assert!(table.contains("a.part: others took CPU time"), "{table}");
}

#[test]
fn rows_say_nothing_when_most_of_them_do_not() {
    let (clear, noisy) = (|| row(&[0.5; 5]), || row(&[0.5, 2.0, 1.0, 1.0, 1.0]));
    let few = || row(&[0.5; 4]);
    assert_eq!(untold(&[clear(), noisy()]), None);
    assert_eq!(untold(&[clear(), noisy(), noisy()]), Some(Untold::TooNoisy));
    assert_eq!(untold(&[clear(), few(), few()]), Some(Untold::TooFew));
    assert_eq!(untold(&[]), None);
    let table = table(&[("g", vec![clear(), noisy()])], 5);
    assert!(table.contains("1 of 2 rows cannot tell"), "{table}");
}

#[test]
fn the_members_of_the_json_stay() {
    let text =
        json(&[row(&[2.0, 3.0, 3.0, 3.0, 4.0]).within(Budget::Ratio(5.0))]).expect("numbers and texts");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let expected = serde_json::json!([{
        "metric": "x", "unit": "ms", "loden": 3.0, "baseline": 1.0, "baseline_name": "b", "ratio": 3.0,
        "budget": "<= 5 x", "holds": true, "untold": null, "rounds": 5, "spread": 2.0 / 3.0,
    }]);
    assert_eq!(value, expected);
}
