use super::*;

#[test]
fn what_is_recorded_is_exposed() {
    let metrics = Metrics::new();
    metrics.admission(AdmissionOutcome::Mutated, Duration::from_millis(3));
    metrics.admission(AdmissionOutcome::Error, Duration::from_millis(3));
    metrics.admission_panic();
    metrics.server().refused(Refused::Overload);
    metrics.server().closed(ConnectionEnd::PushedOut, 2);
    metrics.question(QuestionOutcome::Timeout);
    metrics.sync("Success");
    metrics.clone().sync("Success");
    metrics.registry_request("ghcr.io");
    metrics.registry_error("registry:5000");
    metrics.rollout(RolloutOutcome::Started);
    metrics.kubernetes_write("Deployment");
    metrics.set_leader(true);
    metrics.set_images(7);
    metrics.last_seen("images", "shop").set(1_800_000_000);
    metrics.set_certificate_expiry(1_900_000_000);
    metrics.set_ca_expiry(1_900_000_001);
    metrics.set_certificate_failing(CertificatePart::Ca, true);
    let text = metrics.encode();
    let check = |line: &str| assert!(text.lines().any(|l| l == line), "no `{line}` in\n{text}");
    check("kimup_admission_requests_total{outcome=\"mutated\"} 1");
    check("kimup_admission_requests_total{outcome=\"denied\"} 0");
    check("kimup_admission_requests_total{outcome=\"error\"} 1");
    check("kimup_admission_panics_total 1");
    check("kimup_admission_duration_seconds_bucket{le=\"0.0025\"} 0");
    check("kimup_admission_duration_seconds_bucket{le=\"0.005\"} 2");
    check("kimup_requests_refused_total{reason=\"overload\"} 1");
    check("kimup_requests_refused_total{reason=\"not-ready\"} 0");
    check("kimup_connections_closed_total{reason=\"pushed-out\"} 2");
    check("kimup_questions_total{outcome=\"timeout\"} 1");
    check("kimup_questions_total{outcome=\"failed\"} 0");
    check("kimup_syncs_total{result=\"Success\"} 2");
    check("kimup_registry_requests_total{host=\"ghcr.io\"} 1");
    check("kimup_registry_errors_total{host=\"registry:5000\"} 1");
    check("kimup_rollouts_total{outcome=\"started\"} 1");
    check("kimup_rollouts_total{outcome=\"settled\"} 0");
    check("kimup_kubernetes_writes_total{kind=\"Deployment\"} 1");
    check("kimup_leader 1");
    check("kimup_images 7");
    check("kimup_watch_last_seen_timestamp_seconds{resource=\"images\",namespace=\"shop\"} 1800000000");
    check("kimup_certificate_expiry_timestamp_seconds 1900000000");
    check("kimup_ca_expiry_timestamp_seconds 1900000001");
    check("kimup_certificate_renewal_failing{part=\"ca\"} 1");
    check("kimup_certificate_renewal_failing{part=\"serving\"} 0");
    check(&format!("kimup_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_list_is_what_is_exposed() {
    let metrics = Metrics::new();
    metrics.sync("Success");
    metrics.registry_request("ghcr.io");
    metrics.registry_error("ghcr.io");
    metrics.kubernetes_write("Deployment");
    let _ = metrics.last_seen("images", "");
    let text = metrics.encode();
    let mut exposed: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, help)| (name, help.trim_end_matches('.')))
        .collect();
    let mut listed: Vec<(&str, &str)> = METRICS.iter().map(|(name, help)| (stem(name), *help)).collect();
    exposed.sort_unstable();
    listed.sort_unstable();
    assert_eq!(exposed, listed);
}

#[test]
fn hosts_are_bounded() {
    let metrics = Metrics::new();
    for host in 0..MAX_HOSTS + 50 {
        metrics.registry_request(&format!("host-{host}"));
    }
    metrics.registry_request("host-0");
    let text = metrics.encode();
    let series = text.lines().filter(|l| l.starts_with("kimup_registry_requests_total{"));
    assert_eq!(series.count(), MAX_HOSTS + 1);
    assert!(text.contains("kimup_registry_requests_total{host=\"other\"} 50\n"), "{text}");
    assert!(text.contains("kimup_registry_requests_total{host=\"host-0\"} 2\n"), "{text}");
}

#[test]
fn resident_memory_of_proc_status() {
    fn check(status: &str, bytes: Option<i64>) {
        assert_eq!(resident_bytes(status), bytes, "{status}");
    }
    check("Name:\tkimup\nVmRSS:\t   2048 kB\nThreads:\t3\n", Some(2_097_152));
    check("VmRSS: 9223372036854775807 kB", None);
    check("VmRSS: 2048", None);
    check("Name: kimup", None);
}

#[test]
fn processor_time_of_proc_stat() {
    fn check(stat: &str, seconds: Option<f64>) {
        assert_eq!(cpu_seconds(stat), seconds, "{stat}");
    }
    check("1 (kimup) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0", Some(2.0));
    check("1 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 1 1 0 0", Some(0.02));
    check("1 (kimup) S 1 2", None);
    check("", None);
}
