//! The commands of a chat: lines that begin with `/`.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

/// What `/help` prints.
pub(super) const HELP: &str = "\
/undo               take back the last turn
/retry              another reply to the last message
/edit [TEXT]        replace the last message
/fork NAME          copy the conversation and go on with the copy
/switch NAME        go on with another conversation
/list               list the conversations
/drop NAME          forget a conversation
/save FILE          save the conversation
/load FILE          go on with a saved conversation
/system [TEXT]      begin anew with a text for the system
/set [NAME VALUE]   show or change temperature, top-p, top-k, presence-penalty,
                    frequency-penalty, penalty-decay, seed, tokens (0: no limit),
                    think (off, fast, on, short, medium, long)
/stats              tokens, speed and memory
/reset              begin anew
/quit               end, as Ctrl-D does
//TEXT              a message that begins with /
A \\ at the end of a line goes on in the next one. Ctrl-C stops a reply.";

/// A line of the user.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Send(String),
    Undo,
    Retry,
    Edit(Option<String>),
    Fork(String),
    Switch(String),
    List,
    Drop(String),
    Save(PathBuf),
    Load(PathBuf),
    System(Option<String>),
    Set(Option<(String, String)>),
    Stats,
    Reset,
    Help,
    Quit,
}

impl Command {
    /// Reads a line.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let Some(command) = line.trim_start().strip_prefix('/') else { return Ok(Self::Send(line.into())) };
        if command.starts_with('/') {
            return Ok(Self::Send(command.into()));
        }
        let (name, text) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let text = text.trim();
        let some = || Some(text.to_owned()).filter(|text| !text.is_empty());
        let needed = |what: &str| {
            ensure!(!text.is_empty(), "/{name} needs a {what}");
            Ok(text.to_owned())
        };
        let parsed = match name {
            "edit" => return Ok(Self::Edit(some())),
            "fork" => return Ok(Self::Fork(needed("name")?)),
            "switch" => return Ok(Self::Switch(needed("name")?)),
            "drop" => return Ok(Self::Drop(needed("name")?)),
            "save" => return Ok(Self::Save(needed("file")?.into())),
            "load" => return Ok(Self::Load(needed("file")?.into())),
            "system" => return Ok(Self::System(some())),
            "set" => return Ok(Self::Set(some().map(|text| setting(&text)).transpose()?)),
            "undo" => Self::Undo,
            "retry" => Self::Retry,
            "list" => Self::List,
            "stats" => Self::Stats,
            "reset" => Self::Reset,
            "help" | "?" => Self::Help,
            "quit" | "exit" | "bye" => Self::Quit,
            _ => bail!("/{name} is no command; /help lists them, and //{name} is a message"),
        };
        ensure!(text.is_empty(), "/{name} takes nothing after it");
        Ok(parsed)
    }
}

/// `NAME VALUE` or `NAME=VALUE`.
fn setting(text: &str) -> Result<(String, String)> {
    match text.split_once(['=', ' ', '\t']) {
        Some((name, value)) => Ok((name.trim().into(), value.trim().into())),
        None => bail!("/set needs a name and a value, such as temperature 0.8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        text.into()
    }

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, command) in [
            ("hi /undo", Command::Send(text("hi /undo"))),
            ("", Command::Send(text(""))),
            ("//etc/passwd", Command::Send(text("/etc/passwd"))),
            (" /undo ", Command::Undo),
            ("/edit", Command::Edit(None)),
            ("/edit a\nb ", Command::Edit(Some(text("a\nb")))),
            ("/fork b", Command::Fork(text("b"))),
            ("/system  You are kind. ", Command::System(Some(text("You are kind.")))),
            ("/system", Command::System(None)),
            ("/set", Command::Set(None)),
            ("/set temperature 0.8", Command::Set(Some((text("temperature"), text("0.8"))))),
            ("/set top-k = 5", Command::Set(Some((text("top-k"), text("= 5"))))),
            ("/save a b.rwstate", Command::Save("a b.rwstate".into())),
        ] {
            assert_eq!(Command::parse(line).unwrap(), command, "{line:?}");
        }
    }

    #[test]
    fn a_wrong_command_says_what_is_wrong() {
        for (line, word) in [
            ("/undoo", "//undoo is a message"),
            ("/undo 3", "takes nothing"),
            ("/fork", "needs a name"),
            ("/load ", "needs a file"),
            ("/set temperature", "a value"),
        ] {
            assert!(Command::parse(line).unwrap_err().to_string().contains(word), "{line:?}");
        }
    }

    #[test]
    fn help_lists_every_command() {
        for name in HELP.lines().filter_map(|line| line.strip_prefix('/')) {
            let name = name.split([' ', '[']).next().unwrap();
            let line = format!("/{name} x");
            let error = Command::parse(&line).err().map_or(String::new(), |error| error.to_string());
            assert!(!error.contains("no command"), "{error}");
        }
    }
}
