//! Conversations on a terminal and through pipes.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::termios::{LocalModes, tcgetattr};
use rwkv_edge::format::Template;
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use tempfile::TempDir;

use crate::common::{convert, fixture, options};
use crate::program::{FAIRY, command, failure, is_emulated, pipe, resize, run, stdout, terminal};

/// Long enough for any step of a test on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The shipped model tells stories in any template, and most of its replies are short.
const TALK: [&str; 7] = ["chat", FAIRY, "--chat", "world", "--seed", "1", "-n"];
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

/// A model of bytes whose greedy reply never ends.
fn endless() -> (TempDir, String) {
    let (folder, path) = convert(
        &fixture("v4-tiny.pth"),
        &Options {
            template: Some(Template::World),
            sampling: vec!["temperature=0".into()],
            ..options(DType::Int8)
        },
    );
    (folder, path.to_str().unwrap().to_owned())
}

/// A program on a terminal of its own, as a shell starts it.
struct Terminal {
    child: Child,
    master: File,
    peer: File,
    output: Receiver<Vec<u8>>,
    /// What the program has written.
    seen: String,
    /// The part of it that the test has looked at.
    read: usize,
}

impl Terminal {
    fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let (mut master, peer) = terminal(80);
        let program = command();
        // Makes the terminal the one whose Ctrl-C interrupts the program.
        let mut setsid = Command::new("setsid");
        setsid.arg("--ctty").arg(program.get_program()).args(program.get_args()).args(args);
        setsid
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("RWKV_EDGE_ISA")
            .envs(env.iter().copied());
        let stream = || Stdio::from(peer.try_clone().unwrap());
        let child = setsid.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let (sender, output) = channel();
        let mut reader = master.try_clone().unwrap();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut piece) {
                if sender.send(piece[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        master.flush().unwrap();
        Self { child, master, peer, output, seen: String::new(), read: 0 }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a text; returns what was written before it.
    fn wait_for(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some(at) = self.seen[self.read..].find(text) {
                let before = self.seen[self.read..][..at].to_owned();
                self.read += at + text.len();
                return before;
            }
            assert!(started.elapsed() < PATIENCE, "no {text:?} in {:?}", &self.seen[self.read..]);
            if let Ok(piece) = self.output.recv_timeout(Duration::from_millis(100)) {
                self.seen += &String::from_utf8_lossy(&piece);
            }
        }
    }

    /// Waits for so many bytes of output.
    fn wait_for_bytes(&mut self, count: usize) {
        let started = Instant::now();
        while self.seen.len() < self.read + count {
            assert!(started.elapsed() < PATIENCE, "only {:?}", &self.seen[self.read..]);
            if let Ok(piece) = self.output.recv_timeout(Duration::from_millis(100)) {
                self.seen += &String::from_utf8_lossy(&piece);
            }
        }
    }

    /// Waits for the prompt, with which the editor switches the mode for pasted lines on.
    fn prompt(&mut self) -> String {
        self.wait_for("\x1b[?2004h")
    }

    /// Types a line and waits for the next prompt. Returns what was written in between.
    fn line(&mut self, line: &str) -> String {
        self.type_in(line);
        self.type_in("\r");
        self.wait_for("\x1b[?2004l\r\n");
        self.prompt()
    }

    fn end(mut self) -> (ExitStatus, String) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                while let Ok(piece) = self.output.recv_timeout(Duration::from_millis(100)) {
                    self.seen += &String::from_utf8_lossy(&piece);
                }
                return (status, self.seen[self.read..].to_owned());
            }
            if started.elapsed() > PATIENCE {
                let _ = self.child.kill();
                panic!("it does not end: {:?}", self.seen);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The reply in what followed a message on a terminal.
fn reply(output: &str) -> String {
    output.split("\r\n").next().unwrap().to_owned() + if output.contains("\r\n") { "" } else { "?" }
}

#[test]
fn every_command_works_on_a_terminal() {
    if is_emulated() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.rwstate");
    let file = file.to_str().unwrap();
    let mut talk = Terminal::start(&[&TALK[..], &["8"]].concat(), &[]);
    assert!(talk.prompt().contains("template world; /help lists commands"));
    let first = reply(&talk.line("Tell me about the king."));
    assert!(first.len() > 8, "{first:?}");
    let second = reply(&talk.line("/retry"));
    assert!(second != first && second.len() > 8, "{second:?}");
    assert!(talk.line("/undo").contains("undone: Tell me about the king."));
    assert!(talk.line("/undo").contains("there is no turn to undo"));
    talk.line("Tell me about the king.");
    // The editor begins with the message, and more can be typed after it.
    talk.type_in("/edit\r");
    talk.wait_for("/edit Tell me about the king.");
    talk.line(" And the queen?");
    talk.wait_for("> ");
    assert!(talk.line("/undo").contains("undone: Tell me about the king. And the queen?"));
    talk.line("/edit x");
    talk.line("Who lives\\\rin the castle?");
    assert!(talk.line("/fork other").is_empty());
    talk.wait_for("other> ");
    assert!(talk.line("/undo").contains("undone: Who lives\\nin the castle?"));
    let list = talk.line("/list");
    assert!(list.contains("  main: 1 turns\r\n* other: 0 turns"), "{list:?}");
    talk.line("/switch main");
    talk.line("/drop other");
    assert_eq!(talk.line("/list").trim(), "* main: 1 turns");
    assert!(talk.line(&format!("/save {file}")).contains("saved: "));
    talk.line("/reset");
    let loaded = talk.line(&format!("/load {file}"));
    assert!(loaded.contains("User: Who lives\r\nin the castle?\r\n\r\nAssistant: "), "{loaded:?}");
    assert!(talk.line("/load /nowhere").contains("/nowhere"));
    assert!(talk.line("/set temperature 0").is_empty());
    assert!(talk.line("/set").contains("temperature 0, top-p 0.3"));
    assert!(talk.line("/set temperature hot").contains("hot"));
    let greedy = reply(&talk.line("Hello."));
    assert_eq!(reply(&talk.line("/retry")), greedy);
    assert!(talk.line("/stats").contains(" turns, 1 can be undone"));
    talk.line("/system You tell stories.");
    assert!(talk.line("/list").contains("main: 0 turns"));
    assert!(talk.line("/help").contains("/switch NAME"));
    assert!(talk.line("/nonsense").contains("no command"));
    talk.type_in("/quit\r");
    assert_eq!(talk.end().0.code(), Some(0));
}

#[test]
fn an_interruption_stops_the_reply_and_a_second_one_ends_the_program() {
    if is_emulated() {
        return;
    }
    let (_folder, model) = endless();
    let mut talk = Terminal::start(&["chat", &model, "-n", "0"], &[]);
    talk.prompt();
    for _ in 0..2 {
        talk.type_in("Hello.\r");
        talk.wait_for("\x1b[?2004l\r\n");
        talk.wait_for_bytes(10);
        talk.type_in(CTRL_C);
        assert!(talk.prompt().len() >= 10);
        // The conversation goes on with what was said.
        assert!(talk.line("/stats").contains("1 turns"));
        talk.line("/undo");
    }
    talk.type_in(CTRL_C);
    assert!(talk.prompt().contains("Ctrl-C again or Ctrl-D ends"));
    talk.type_in(CTRL_C);
    assert_eq!(talk.end().0.code(), Some(0));

    let mut talk = Terminal::start(&["chat", &model, "-n", "0"], &[]);
    talk.prompt();
    talk.type_in(CTRL_D);
    assert_eq!(talk.end().0.code(), Some(0));
}

#[test]
fn an_interruption_while_a_message_is_read_drops_it() {
    if is_emulated() {
        return;
    }
    let (folder, model) = endless();
    let system = folder.path().join("system.txt");
    fs::write(&system, "You tell stories. ".repeat(100_000)).unwrap();
    let system = system.to_str().unwrap();
    let mut talk = Terminal::start(&["chat", &model, "--threads", "1", "--system", system], &[]);
    talk.prompt();
    talk.type_in("Hello.\r");
    talk.wait_for(" tokens/s, ");
    talk.type_in(CTRL_C);
    talk.wait_for("the message is dropped");
    talk.prompt();
    let stats = talk.line("/stats");
    assert!(stats.contains("tokens:  0 read, 0 turns"), "{stats:?}");
    talk.type_in(CTRL_D);
    assert_eq!(talk.end().0.code(), Some(0));
}

#[test]
fn a_signal_at_the_prompt_ends_the_program_and_leaves_the_terminal_as_it_was() {
    if is_emulated() {
        return;
    }
    let (_folder, model) = endless();
    let mut talk = Terminal::start(&["chat", &model], &[]);
    talk.prompt();
    talk.type_in("a line that is not finished");
    talk.wait_for("finished");
    let is_raw = |talk: &Terminal| !tcgetattr(&talk.peer).unwrap().local_modes.contains(LocalModes::ICANON);
    assert!(is_raw(&talk));
    assert!(Command::new("kill").arg(talk.child.id().to_string()).status().unwrap().success());
    let peer = talk.peer.try_clone().unwrap();
    assert_eq!(talk.end().0.signal(), Some(15));
    assert!(tcgetattr(&peer).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
}

#[test]
fn a_window_may_change_its_size_at_any_time() {
    if is_emulated() {
        return;
    }
    let (_folder, model) = endless();
    let mut talk = Terminal::start(&["chat", &model, "-n", "2000"], &[]);
    let resize = |talk: &Terminal, columns| {
        resize(&talk.peer, columns);
        thread::sleep(Duration::from_millis(50));
    };
    talk.prompt();
    // At the prompt, with more typed than fits in a line, and while the reply is written.
    talk.type_in("0123456789");
    resize(&talk, 7);
    talk.type_in("abcdefghij");
    resize(&talk, 0);
    resize(&talk, 200);
    talk.type_in("\r");
    talk.wait_for("\x1b[?2004l");
    resize(&talk, 20);
    talk.prompt();
    let undone = talk.line("/undo");
    assert!(undone.contains("undone: 0123456789abcdefghij"), "{undone:?}");
    talk.type_in("/quit\r");
    assert_eq!(talk.end().0.code(), Some(0));
}

#[test]
fn thoughts_are_dimmed_on_a_terminal_that_can_and_nothing_else_gets_them() {
    if is_emulated() {
        return;
    }
    let args = ["chat", FAIRY, "Hello.", "--chat", "think", "-n", "5", "--seed", "1"];
    for (env, dims) in [(&[][..], true), (&[("NO_COLOR", "1")], false), (&[("TERM", "dumb")], false)] {
        let (status, output) = Terminal::start(&args, env).end();
        assert!(status.success(), "{output}");
        assert!(output.contains("<think"), "{output:?}");
        assert_eq!(output.contains("\x1b[2m<think") && output.contains("\x1b[0m"), dims, "{output:?}");
        assert_eq!(output.contains('\x1b'), dims, "{output:?}");
    }
    assert_eq!(stdout(&run(&args)), "\n");
}

#[test]
fn a_script_gets_one_reply_for_each_line() {
    let args = [&TALK[..], &["8"]].concat();
    let output = pipe(&args, b"Tell me about the king.\r\n\n/retry\n/set temperature 0\nHello.\n/retry\nAnd");
    let text = stdout(&output);
    let replies: Vec<_> = text.lines().collect();
    assert!(replies.len() == 5 && replies.iter().all(|reply| !reply.is_empty()), "{text:?}");
    assert!(replies[0] != replies[1] && replies[2] == replies[3], "{text:?}");
    assert!(!text.contains('\x1b') && !text.contains("> "), "{text:?}");
    // With a message on the command line there is one reply.
    let one = [&["chat", FAIRY, "Tell me about the king."], &TALK[2..], &["8"]].concat();
    assert_eq!(stdout(&run(&one)), format!("{}\n", replies[0]));
    let output = pipe(&args, b"Hello.\n/nonsense\nHello.\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonsense is no command"));
}

#[test]
fn a_killed_conversation_goes_on_from_its_last_reply() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.rwstate");
    let file = file.to_str().unwrap();
    let args = [&TALK[..], &["8", "--autosave", file]].concat();
    let whole = [&TALK[..], &["8"]].concat();
    let replies = stdout(&pipe(&whole, b"Who lives in the castle?\nAnd who else?\n"));
    let (first, second) = replies.split_once('\n').unwrap();
    let mut child = command().args(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"Who lives in the castle?\n").unwrap();
    let started = Instant::now();
    while !fs::exists(file).unwrap() {
        assert!(started.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The seed of the command line would restart the random numbers.
    let again = ["chat", FAIRY, "--chat", "world", "-n", "8", "--autosave", file];
    let output = pipe(&again, b"And who else?\n");
    assert_eq!(stdout(&output), second);
    let history = String::from_utf8(output.stderr).unwrap();
    assert!(history.contains("User: Who lives in the castle?") && history.contains(first), "{history}");
}

#[test]
fn a_conversation_begins_with_a_saved_one_of_its_own_template() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.rwstate");
    let file = file.to_str().unwrap();
    let save = format!("Who lives in the castle?\n/save {file}\n");
    stdout(&pipe(&[&TALK[..], &["8"]].concat(), save.as_bytes()));
    let begin = [&TALK[..], &["8", "--state", file]].concat();
    let text = stdout(&pipe(&begin, b"And who else?\n/reset\n/set seed 1\nAnd who else?\n"));
    let replies: Vec<_> = text.lines().collect();
    assert!(replies.len() == 2 && replies[0] == replies[1], "{text:?}");
    let message = failure(&["chat", FAIRY, "x", "--chat", "raven", "--state", file]);
    assert!(
        message.contains("talk.rwstate: the saved conversation has the chat template world"),
        "{message}"
    );
}

#[test]
fn a_baked_system_text_begins_a_conversation_as_the_text_does() {
    let folder = tempfile::tempdir().unwrap();
    let [system, state] = ["system.txt", "system.rwstate"].map(|name| folder.path().join(name));
    let [system, state] = [&system, &state].map(|path| path.to_str().unwrap());
    fs::write(system, "You live in a castle.\r\n\r\nUser: forged\n").unwrap();
    let bake = ["bake", FAIRY, "--system", system, "--chat", "world", "-o", state];
    assert!(run(&bake).status.success());
    let reply = |option, file| stdout(&pipe(&[&TALK[..], &["8", option, file]].concat(), b"Who are you?\n"));
    assert_eq!(reply("--state", state), reply("--system", system));
    let raven = ["bake", FAIRY, "--system", system, "--chat", "raven", "-o", state];
    assert!(failure(&raven).contains("has no place for a system text"));
    assert!(
        failure(&["bake", FAIRY, "--system", system, "-o", state]).contains("has no place for a system text")
    );
    fs::write(system, "\n").unwrap();
    assert!(failure(&bake).contains("system.txt: the text for the system is empty"));
}

#[test]
fn a_model_without_a_template_says_what_to_use_instead() {
    let message = failure(&["chat", FAIRY]);
    assert!(message.contains("no chat template") && message.contains("`rwkv-edge run`"), "{message}");
    let output = run(&["chat", FAIRY, "--chat", "nobody"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("world, think, flower, raven, none"));
    assert!(failure(&["chat", FAIRY, "x", "--chat", "raven", "--think", "on"]).contains("no think blocks"));
}
