//! Images: which program of the host an image name stands for.
//!
//! The lab pulls nothing. An image is known by the last part of its name without tag or digest, whatever
//! registry it would come from; what Debian packages offer is run from the host's file system, and `ambit…` is
//! the very binary the lab runs from. An image that maps to nothing can still run a command of its own.

/// Where the `ambit` binary appears in containers.
pub const AMBIT: &str = "/usr/local/bin/ambit";

/// What an image brings along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Replaced by `command` of a container.
    pub entrypoint: Vec<String>,
    /// Replaced by `args`, dropped when there is a `command`.
    pub cmd: Vec<String>,
    /// User and group when the pod names none.
    pub user: Option<(u32, u32)>,
    /// The working directory when the pod names none.
    pub workdir: Option<String>,
    /// Directories the program expects to find writable.
    pub dirs: Vec<String>,
    /// Debian package that has the program.
    pub package: Option<&'static str>,
    /// Whether the `ambit` binary must be mounted.
    pub ambit: bool,
}

struct Row {
    names: &'static [&'static str],
    entrypoint: &'static [&'static str],
    cmd: &'static [&'static str],
    user: Option<(u32, u32)>,
    dir: Option<&'static str>,
    package: &'static str,
}

const NOBODY: Option<(u32, u32)> = Some((65534, 65534));

const fn row(
    names: &'static [&'static str],
    entrypoint: &'static [&'static str],
    package: &'static str,
) -> Row {
    Row { names, entrypoint, cmd: &[], user: None, dir: None, package }
}

const TABLE: &[Row] = &[
    Row {
        names: &["prometheus"],
        entrypoint: &["/usr/bin/prometheus"],
        cmd: &["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"],
        user: NOBODY,
        dir: Some("/prometheus"),
        package: "prometheus",
    },
    Row {
        user: NOBODY,
        ..row(&["node-exporter"], &["/usr/bin/prometheus-node-exporter"], "prometheus-node-exporter")
    },
    Row { cmd: &["nginx", "-g", "daemon off;"], ..row(&["nginx", "nginx-unprivileged"], &[], "nginx-light") },
    row(
        &["nginx-prometheus-exporter", "nginx-exporter"],
        &["/usr/bin/prometheus-nginx-exporter"],
        "prometheus-nginx-exporter",
    ),
    Row {
        cmd: &["redis-server", "--protected-mode", "no"],
        dir: Some("/data"),
        ..row(&["redis"], &[], "redis-server")
    },
    row(
        &["redis_exporter", "redis-exporter"],
        &["/usr/bin/prometheus-redis-exporter"],
        "prometheus-redis-exporter",
    ),
    Row { cmd: &["sh"], ..row(&["busybox", "alpine"], &[], "bash") },
    Row { cmd: &["bash"], ..row(&["debian", "ubuntu", "bash", "netshoot"], &[], "bash") },
    row(&["curl"], &["curl"], "curl"),
    row(&["iperf3"], &["iperf3"], "iperf3"),
    Row { cmd: &["python3"], ..row(&["python"], &[], "python3") },
    row(&["pause"], &["/usr/bin/sleep", "infinity"], "coreutils"),
];

/// The last part of an image's name, without tag and digest.
pub fn short_name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last)
}

/// What an image stands for, if anything.
pub fn resolve(image: &str) -> Option<Image> {
    let name = short_name(image);
    if name.starts_with("ambit") {
        return Some(Image { entrypoint: vec![AMBIT.to_owned()], ambit: true, ..Image::default() });
    }
    let row = TABLE.iter().find(|r| r.names.contains(&name))?;
    let owned = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect();
    Some(Image {
        entrypoint: owned(row.entrypoint),
        cmd: owned(row.cmd),
        user: row.user,
        workdir: row.dir.map(str::to_owned),
        dirs: row.dir.map(str::to_owned).into_iter().collect(),
        package: Some(row.package),
        ambit: false,
    })
}

/// The words a container runs: those of the pod over those of the image, by the rules of Kubernetes.
///
/// Nothing at all is an error: it names the image, since that is what cannot be had.
pub fn words(image_name: &str, command: &[String], args: &[String]) -> Result<(Image, Vec<String>), String> {
    let image = resolve(image_name);
    let known = image.is_some();
    let image = image.unwrap_or_default();
    let words: Vec<String> = if !command.is_empty() {
        [command, args].concat()
    } else if !args.is_empty() {
        [&image.entrypoint, args].concat()
    } else {
        [image.entrypoint.as_slice(), image.cmd.as_slice()].concat()
    };
    if words.is_empty() || (!known && command.is_empty()) {
        return Err(format!(
            "the lab has no program for image {image_name:?}: it runs programs of this machine and pulls \
             nothing; give the container a command, or use one of: {}",
            known_names().join(", ")
        ));
    }
    Ok((image, words))
}

fn known_names() -> Vec<&'static str> {
    TABLE.iter().flat_map(|r| r.names.iter().copied()).chain(["ambit"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&w| w.to_owned()).collect()
    }

    #[test]
    fn an_image_is_known_by_its_last_name_only() {
        for image in ["nginx", "nginx:1.27", "docker.io/library/nginx@sha256:00", "localhost:5000/nginx:x"] {
            assert_eq!(short_name(image), "nginx", "{image}");
        }
    }

    #[test]
    fn ambit_images_are_this_binary() {
        for image in ["ambit", "ghcr.io/ambit-mesh/ambit:0.1", "ambit-proxy"] {
            let (image, words) = words(image, &[], &strings(&["proxy"])).unwrap();
            assert!(image.ambit);
            assert_eq!(words, [AMBIT, "proxy"]);
        }
    }

    #[test]
    fn args_replace_cmd_and_command_replaces_both() {
        let run = |command: &[&str], args: &[&str]| {
            words("prom/prometheus:v3", &strings(command), &strings(args)).unwrap().1
        };
        assert_eq!(run(&[], &["--x"]), ["/usr/bin/prometheus", "--x"]);
        assert_eq!(run(&["sh"], &[]), ["sh"]);
        assert_eq!(run(&["sh"], &["-c", "true"]), ["sh", "-c", "true"]);
        assert_eq!(run(&[], &[])[0], "/usr/bin/prometheus");
    }

    #[test]
    fn an_unknown_image_runs_only_what_the_pod_says() {
        assert_eq!(words("example/app:1", &strings(&["sleep", "9"]), &[]).unwrap().1, ["sleep", "9"]);
        let error = words("example/app:1", &[], &strings(&["9"])).unwrap_err();
        assert!(error.contains("example/app:1") && error.contains("nginx"), "{error}");
    }
}
