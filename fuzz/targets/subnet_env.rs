//! `subnet.env`: what is read and written again is the same, and no address that it leads to
//! is somebody else's.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use loden_cni::ipam::{self, Pool, Usage};
use loden_proto::subnet_env::{SubnetEnv, SubnetEnvError};
use loden_proto::{Family, Subnet};

fuzz_target!(|text: &str| {
    let env = match SubnetEnv::parse(text) {
        Ok(env) => env,
        Err(SubnetEnvError::Missing(keys)) => return assert!(!keys.is_empty()),
        Err(error @ SubnetEnvError::Value { .. }) => return assert!(!error.to_string().is_empty()),
    };
    let again = SubnetEnv::parse(&env.to_text(true)).expect("our own text");
    let sorted = |subnets: &[Subnet]| {
        let mut subnets = subnets.to_vec();
        // Families are written in their own order.
        subnets.sort_by_key(Subnet::family);
        subnets
    };
    assert_eq!(sorted(&again.networks), sorted(&env.networks));
    assert_eq!(sorted(&again.subnets), sorted(&env.subnets));
    assert_eq!(again.docker_ranges, env.docker_ranges);
    assert_eq!(
        (again.mtu, again.masquerade, again.lease, &again.bridge),
        (env.mtu, env.masquerade, env.lease, &env.bridge)
    );
    for family in Family::ALL {
        assert!(env.subnets.iter().filter(|s| s.family() == family).count() <= 1, "{:?}", env.subnets);
    }
    for subnet in &env.subnets {
        let range = env.docker_range(subnet.family());
        let pool = range.map_or(Pool::new(*subnet), |range| Pool::new(*subnet).below(range));
        let address = ipam::choose(pool, &Usage::default(), |_| None, SystemTime::now());
        assert_eq!(address.is_some(), pool.usable() > 0);
        let Some(address) = address else { continue };
        assert!(subnet.contains(address) && pool.contains(address), "{address} of {subnet}");
        assert!(address != subnet.address() && address != subnet.gateway(), "{address} of {subnet}");
        assert!(subnet.family() == Family::V6 || address != subnet.last(), "{address} of {subnet}");
        let docker = range.filter(|range| subnet.contains_subnet(range));
        assert!(docker.is_none_or(|range| !range.contains(address)), "{address} of {subnet}");
    }
});
