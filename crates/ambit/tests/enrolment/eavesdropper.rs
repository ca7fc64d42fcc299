//! The eavesdropper: tcpdump on every link of every node, and what it has heard so far.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Captures into files until it is dropped.
pub struct Eavesdropper {
    ears: Vec<(Child, PathBuf)>,
    /// How far each file was searched, by word.
    searched: Mutex<std::collections::HashMap<(String, usize), u64>>,
}

impl Eavesdropper {
    /// Listens in the network namespaces of those names.
    pub async fn listen(nodes: &[String], dir: &Path) -> Self {
        let ears = nodes.iter().map(|node| {
            let file = dir.join(format!("{node}.pcap"));
            let mut child = Command::new("nsenter")
                .arg(format!("--net=/run/netns/{node}"))
                .args(["tcpdump", "-i", "any", "-U", "-n", "-s", "0", "-B", "32768", "-Z", "root", "-w"])
                .arg(&file)
                .arg("tcp")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(child.stderr.take().unwrap());
            let mut line = String::new();
            while !line.contains("listening on") {
                line.clear();
                assert!(said.read_line(&mut line).unwrap() > 0, "tcpdump ended");
            }
            // It must be able to say what it wants until it ends.
            std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
            (child, file)
        });
        Self { ears: ears.collect(), searched: Mutex::default() }
    }

    /// Whether `word` was readable on any link, up to now.
    pub fn heard(&self, word: &str) -> Result<(), String> {
        let mut searched = self.searched.lock().unwrap();
        for (index, (_, file)) in self.ears.iter().enumerate() {
            let from = searched.entry((word.to_owned(), index)).or_default();
            let mut text = Vec::new();
            let mut file = std::fs::File::open(file).unwrap();
            file.seek(SeekFrom::Start(*from)).unwrap();
            file.read_to_end(&mut text).unwrap();
            if text.windows(word.len()).any(|window| window == word.as_bytes()) {
                return Ok(());
            }
            // A word may be cut in two by the end of what is there.
            *from += (text.len() as u64).saturating_sub(word.len() as u64);
        }
        Err(format!("{word} was not heard in {} bytes", self.bytes()))
    }

    /// Between whom `word` was readable, for the message of a failure.
    pub fn who(&self, word: &str) -> Vec<String> {
        let mut who = Vec::new();
        for (_, file) in &self.ears {
            let output = Command::new("tcpdump").args(["-nn", "-A", "-r"]).arg(file).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut packet = "";
            for line in text.lines() {
                if line.contains(" IP ") || line.contains(" IP6 ") {
                    packet = line;
                } else if line.contains(word) {
                    who.push(packet.to_owned());
                }
            }
        }
        who
    }

    /// What was captured so far.
    pub fn bytes(&self) -> u64 {
        self.ears.iter().map(|(_, file)| std::fs::metadata(file).map_or(0, |there| there.len())).sum()
    }
}

impl Drop for Eavesdropper {
    fn drop(&mut self) {
        for (child, _) in &mut self.ears {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
