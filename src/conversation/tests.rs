//! Conversations with the shipped model, which knows stories only, in several templates.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::*;
use crate::engine::EngineOptions;
use crate::format::{Replace, Template};
use crate::model::LoadOptions;

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let open = || {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fairy7-int8.rwkv");
        Model::open(path, &LoadOptions::default()).unwrap()
    };
    Arc::clone(MODEL.get_or_init(open))
}

fn options(template: Template) -> ConversationOptions {
    let engine = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    ConversationOptions {
        session: SessionOptions { engine, seed: 7, ..SessionOptions::default() },
        chat: Some(Chat { sampling: model().chat().sampling, ..template.chat() }),
        max_tokens: Some(12),
        ..ConversationOptions::default()
    }
}

fn talk(template: Template) -> Conversation {
    Conversation::new(model(), &options(template)).unwrap()
}

fn tokens(text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    model().tokenizer().encode(text.as_bytes(), &mut tokens).unwrap();
    tokens
}

/// The state after a text whose parts are tokenized one by one.
fn state_of(parts: &[&str]) -> State {
    let mut session = Session::new(model(), &options(Template::World).session).unwrap();
    session.feed(&model().chat().start_tokens).unwrap();
    parts.iter().for_each(|part| session.feed(&tokens(part)).unwrap());
    session.state().clone()
}

/// The reply, as pieces tell it.
fn listen(talk: &mut Conversation) -> (String, String) {
    let (mut thought, mut said) = (String::new(), String::new());
    while let Some(piece) = talk.next_piece().unwrap() {
        thought += piece.thought;
        said += piece.said;
    }
    (thought, said)
}

fn say(talk: &mut Conversation, message: &str) -> String {
    talk.send(message).unwrap();
    listen(talk);
    talk.turns().last().unwrap().reply.clone()
}

/// Goes on with the reply as if the model drew these tokens. Returns whether it can go on.
fn draw(talk: &mut Conversation, tokens: &[u32]) -> bool {
    tokens.iter().all(|&token| {
        let is_part = talk.take_next(|session| session.sample_as(token)).unwrap();
        is_part && talk.reply.as_ref().unwrap().end.is_none()
    })
}

const USER: &str = "User: Hello.\n\nAssistant:";

#[test]
fn the_next_turn_begins_after_the_visible_reply_and_one_separator_however_the_reply_ended() {
    let once = tokens(" Once upon a time");
    let and = |more: &[u32]| [&once[..], more].concat();
    let one = |text: &str| {
        let tokens = tokens(text);
        assert_eq!(tokens.len(), 1, "{text:?}");
        tokens[0]
    };
    let [lf, two, dot, end, comma] = ["\n", "\n\n", ".\n", ".\n\n", ",\n"].map(one);
    let half = tokens("\u{1f600}")[0];
    // The tokens that the model draws, the text after ` Once upon a time` that it has read in the
    // end, and the visible reply.
    let whole = "Once upon a time";
    for (drawn, read, reply) in [
        (and(&[0]), "\n\n", whole),
        (and(&[two]), "\n\n", whole),
        (and(&[end]), ".\n\n", "Once upon a time."),
        (and(&[lf, lf]), "\n\n", whole),
        (and(&[dot, lf]), ".\n\n", "Once upon a time."),
        (and(&[dot, two]), ".\n\n", "Once upon a time."),
        (and(&[lf, 0]), "\n\n", whole),
        (and(&[comma, one("a"), two]), ",\na\n\n", "Once upon a time,\na"),
        (and(&[&[lf], &tokens("User:")[..]].concat()), "\n\n", whole),
        (and(&[&[lf], &tokens("Use")[..], &[0]].concat()), "\nUse\n\n", "Once upon a time\nUse"),
        // The caller stops these.
        (and(&[]), "\n\n", whole),
        (and(&[lf]), "\n\n", whole),
        (and(&[half]), "\u{fffd}\n\n", "Once upon a time\u{fffd}"),
    ] {
        let mut talk = talk(Template::World);
        talk.send("Hello.").unwrap();
        draw(&mut talk, &drawn);
        let caller = talk.reply.as_ref().unwrap().end.is_none();
        talk.stop();
        while talk.next_piece().unwrap().is_some() {}
        let turn = &talk.turns()[0];
        assert_eq!(turn.reply, reply, "{drawn:?}");
        assert_eq!(turn.end == Some(End::Caller), caller);
        let parts = match read {
            // These tokens were read as the model drew them.
            ",\na\n\n" => vec![USER, " Once upon a time", ",\n", "a", "\n\n"],
            _ => vec![USER, " Once upon a time", read],
        };
        assert!(*talk.session.state() == state_of(&parts), "{drawn:?}");
        assert_eq!(talk.session.text().pending, None);
    }
}

#[test]
fn an_empty_reply_leaves_the_separator_alone() {
    for drawn in [vec![0], tokens("\n\n"), tokens("\n"), vec![]] {
        let mut talk = talk(Template::World);
        talk.send("Hello.").unwrap();
        draw(&mut talk, &drawn);
        talk.settle().unwrap();
        assert_eq!(talk.turns()[0].reply, "");
        assert!(*talk.session.state() == state_of(&[USER, "\n\n"]), "{drawn:?}");
    }
}

#[test]
fn a_think_block_is_not_read_by_the_next_turn_and_cannot_end_the_reply() {
    for (mode, block) in [(ThinkMode::On, "> hm\n\nUser: no</think>"), (ThinkMode::Fast, ">")] {
        let mut talk = talk(Template::Think);
        talk.set_think_mode(mode).unwrap();
        talk.send("Hello.").unwrap();
        assert!(draw(&mut talk, &tokens(block)));
        assert!(!draw(&mut talk, &tokens("\n\nOnce upon\na time.\n\n")));
        listen(&mut talk);
        let turn = &talk.turns()[0];
        let opening = talk.chat.opening(mode).trim_start();
        assert_eq!((turn.thought.clone(), &*turn.reply), (format!("{opening}{block}"), "Once upon\na time."));
        assert!(*talk.session.state() == state_of(&[USER, " Once upon\na time.\n\n"]), "{mode:?}");
    }
    // A block that never ends leaves an empty reply.
    let mut talk = talk(Template::Think);
    talk.send("Hello.").unwrap();
    draw(&mut talk, &tokens("> hm"));
    talk.settle().unwrap();
    assert!(*talk.session.state() == state_of(&[USER, "\n\n"]));
}

#[test]
fn a_block_that_the_model_begins_by_itself_is_no_part_of_the_visible_reply() {
    let mut talk = talk(Template::World);
    talk.send("Hello.").unwrap();
    draw(&mut talk, &tokens(" <think>\n</think>\nOnce\n\n"));
    talk.settle().unwrap();
    assert_eq!(talk.turns()[0].reply, "Once");
    assert!(*talk.session.state() == state_of(&[USER, " Once\n\n"]));
}

#[test]
fn pieces_are_the_reply_without_what_ends_it() {
    for template in [Template::World, Template::Think, Template::Flower, Template::Raven] {
        let mut talk = talk(template);
        talk.send("Tell me about the king.").unwrap();
        let (thought, said) = listen(&mut talk);
        let turn = talk.turns()[0].clone();
        assert_eq!((thought, said.trim()), (turn.thought.clone(), &*turn.reply), "{template}");
        assert_eq!(turn.end, talk.end());
        assert!(turn.end.is_some() && talk.next_piece().unwrap().is_none());
        assert!(talk.chat.stop_texts.iter().all(|stop| !turn.reply.contains(stop)));
    }
}

#[test]
fn an_undone_turn_leaves_no_trace_and_the_same_message_gets_the_same_reply() {
    let mut talk = talk(Template::World);
    say(&mut talk, "Who lives in the castle?");
    let before = talk.session.snapshot();
    let reply = say(&mut talk, "And who else?");
    let turn = talk.undo().unwrap();
    assert_eq!((&*turn.user, &turn.reply), ("And who else?", &reply));
    let after = talk.session.snapshot();
    assert!(after.state == before.state && after.sampler.seed() == before.sampler.seed());
    assert_eq!(say(&mut talk, "And who else?"), reply);
    // In the middle of a reply too.
    talk.send("Why?").unwrap();
    talk.next_piece().unwrap();
    talk.undo().unwrap();
    talk.undo().unwrap();
    assert!(*talk.session.state() == before.state);
    assert_eq!((talk.turns().len(), talk.end()), (1, None));
}

#[test]
fn only_the_last_turns_can_be_undone() {
    let mut talk = Conversation::new(
        model(),
        &ConversationOptions { undo: 2, max_tokens: Some(2), ..options(Template::World) },
    )
    .unwrap();
    let states: Vec<State> = (0..4)
        .map(|_| {
            let state = talk.session.state().clone();
            say(&mut talk, "Go on.");
            state
        })
        .collect();
    for expected in states[2..].iter().rev() {
        talk.undo().unwrap();
        assert!(talk.session.state() == expected);
    }
    let error = talk.undo().unwrap_err().to_string();
    assert!(error.contains("2 states"), "{error}");
    assert_eq!(talk.turns().len(), 2);
    let mut none =
        Conversation::new(model(), &ConversationOptions { undo: 0, ..options(Template::World) }).unwrap();
    say(&mut none, "Go on.");
    assert!(none.undo().is_err() && none.fork("x").is_err());
    none.retry().unwrap();
    listen(&mut none);
    none.reset().unwrap();
    assert_eq!(none.undo().unwrap_err().to_string(), "there is no turn to undo");
}

#[test]
fn another_reply_replaces_the_last_one_alone() {
    let mut talk = talk(Template::World);
    say(&mut talk, "Who lives in the castle?");
    let before = talk.session.state().clone();
    let first = say(&mut talk, "And who else?");
    talk.retry().unwrap();
    listen(&mut talk);
    let second = talk.turns()[1].reply.clone();
    assert!(first != second && talk.turns().len() == 2 && talk.undo_depth() == 2);
    // The state is that of a conversation in which the first reply never was.
    let mut other = self::talk(Template::World);
    other.session.restore(&Snapshot { state: before, ..other.session.snapshot() }).unwrap();
    other.send("And who else?").unwrap();
    other.session.set_seed(0);
    draw(&mut other, &tokens(" x"));
    talk.retry().unwrap();
    draw(&mut talk, &tokens(" x"));
    talk.settle().unwrap();
    other.settle().unwrap();
    assert!(talk.session.state() == other.session.state());
    // After an undo the message before is read again.
    talk.undo().unwrap();
    let first = talk.turns()[0].reply.clone();
    talk.retry().unwrap();
    listen(&mut talk);
    assert!(talk.turns().len() == 1 && talk.turns()[0].reply != first);
    assert!(talk.undo_depth() == 1);
}

#[test]
fn an_edited_message_takes_the_place_of_the_last_one() {
    let mut talk = talk(Template::World);
    let reply = say(&mut talk, "Who lives in the castle?");
    say(&mut talk, "What?");
    let go = &mut |_, _| ControlFlow::Continue(());
    assert!(talk.edit_with("\r\n", go).is_err());
    assert_eq!(talk.turns().len(), 2);
    talk.edit_with("And who else?", go).unwrap();
    listen(&mut talk);
    let users: Vec<_> = talk.turns().iter().map(|turn| &*turn.user).collect();
    assert_eq!(users, ["Who lives in the castle?", "And who else?"]);
    assert_eq!(talk.turns()[0].reply, reply);
}

#[test]
fn forks_go_on_as_conversations_of_their_own() {
    let mut talk = talk(Template::World);
    say(&mut talk, "Who lives in the castle?");
    talk.fork("b").unwrap();
    assert_eq!(talk.name(), "b");
    let one = say(&mut talk, "And who else?");
    talk.switch("main").unwrap();
    // The same random numbers follow in both.
    assert_eq!(say(&mut talk, "And who else?"), one);
    let other = say(&mut talk, "Tell me more.");
    talk.switch("b").unwrap();
    assert_eq!(talk.turns().len(), 2);
    assert_eq!(say(&mut talk, "Tell me more."), other);
    // A fork can undo what was before it.
    for _ in 0..3 {
        talk.undo().unwrap();
    }
    assert_eq!(talk.session.state().tokens_hash(), state_of(&[]).tokens_hash());
    talk.switch("main").unwrap();
    assert_eq!(talk.turns().len(), 3);
    assert_eq!(talk.list().collect::<Vec<_>>(), [("main", 3), ("b", 0)]);
    for (name, word) in [("b", "already"), ("", "name"), ("a b", "name")] {
        assert!(talk.fork(name).unwrap_err().to_string().contains(word));
    }
    assert!(talk.switch("c").is_err() && talk.remove("main").is_err());
    talk.remove("b").unwrap();
    assert_eq!(talk.list().count(), 1);
}

#[test]
fn forks_and_undo_share_the_states_and_a_fork_is_never_lost() {
    let mut talk = Conversation::new(
        model(),
        &ConversationOptions { undo: 3, max_tokens: Some(2), ..options(Template::World) },
    )
    .unwrap();
    say(&mut talk, "One.");
    let state = talk.session.state().clone();
    for name in ["b", "c", "d"] {
        talk.fork(name).unwrap();
    }
    let error = talk.fork("e").unwrap_err().to_string();
    assert!(error.contains("3 states"), "{error}");
    // Without a free state a turn cannot be undone, and everything else works.
    say(&mut talk, "Two.");
    assert!(talk.undo_depth() == 0 && talk.undo().is_err());
    for name in ["main", "b", "c"] {
        talk.switch(name).unwrap();
        assert!(*talk.session.state() == state && talk.turns().len() == 1, "{name}");
    }
    talk.remove("d").unwrap();
    say(&mut talk, "Two.");
    talk.undo().unwrap();
    assert!(*talk.session.state() == state);
}

#[test]
fn a_message_that_is_not_read_whole_is_dropped() {
    let mut talk = talk(Template::World);
    talk.set_system(Some("You tell stories.")).unwrap();
    let long = "Who lives in the castle? ".repeat(40);
    let mut stop = |_, _| ControlFlow::Break(());
    // The system text is dropped with the first message, and read again with the next.
    assert!(!talk.send_with(&long, &mut stop).unwrap());
    say(&mut talk, "Who lives in the castle?");
    let before = talk.session.snapshot();
    assert!(!talk.send_with(&long, &mut stop).unwrap());
    assert!(talk.turns().len() == 1 && talk.next_piece().unwrap().is_none());
    assert!(*talk.session.state() == before.state);
    assert!(talk.send(" \r\n").is_err());
    let reply = say(&mut talk, "And who else?");
    let mut again = self::talk(Template::World);
    again.set_system(Some("You tell stories.")).unwrap();
    say(&mut again, "Who lives in the castle?");
    assert_eq!(say(&mut again, "And who else?"), reply);
}

#[test]
fn a_system_text_begins_anew_and_a_reset_keeps_it() {
    let mut talk = talk(Template::World);
    let first = say(&mut talk, "Hello.");
    talk.set_system(Some(" You tell\r\n\r\nstories. ")).unwrap();
    assert_eq!((talk.turns().len(), talk.system()), (0, Some("You tell\nstories.")));
    talk.send("Hello.").unwrap();
    assert!(talk.before_reply == state_of(&["System: You tell\nstories.\n\n", USER]));
    listen(&mut talk);
    let history = talk.history();
    let reply = &talk.turns()[0].reply;
    assert_eq!(history, format!("System: You tell\nstories.\n\n{USER} {reply}\n\n"));
    talk.undo().unwrap();
    assert!(*talk.session.state() == state_of(&["System: You tell\nstories.\n\n"]));
    talk.reset().unwrap();
    talk.send("Hello.").unwrap();
    assert!(talk.before_reply == state_of(&["System: You tell\nstories.\n\n", USER]));
    talk.set_system(None).unwrap();
    talk.set_seed(7);
    assert_eq!(say(&mut talk, "Hello."), first);
    let mut raven = self::talk(Template::Raven);
    assert!(raven.set_system(Some("x")).unwrap_err().to_string().contains("raven"));
    assert!(raven.set_think_mode(ThinkMode::On).is_err());
}

/// Saves a conversation and loads it again.
fn saved(talk: &mut Conversation) -> (Snapshot, StateNotes) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk.rwstate");
    talk.save_as(Target::new(&path, Replace::States).unwrap()).unwrap();
    Snapshot::open(&model(), model().chat().sampling, 0, &path).unwrap()
}

#[test]
fn a_saved_conversation_goes_on_as_if_it_had_never_stopped() {
    let mut talk = talk(Template::World);
    talk.set_system(Some("You tell stories.")).unwrap();
    say(&mut talk, "Who lives in the castle?");
    let (text, notes) = saved(&mut talk);
    let mut again = self::talk(Template::World);
    say(&mut again, "Something else.");
    again.resume(&text, &notes).unwrap();
    assert_eq!((again.turns().len(), again.history()), (0, talk.history()));
    assert!(again.undo().is_err());
    let reply = say(&mut talk, "And who else?");
    assert_eq!(say(&mut again, "And who else?"), reply);
    assert!(again.session.state() == talk.session.state() && again.history() == talk.history());
    // A reply that is being made ends first.
    talk.send("Why?").unwrap();
    talk.next_piece().unwrap();
    let (text, _) = saved(&mut talk);
    assert!(text.state == *talk.session.state() && text.pending.is_none() && talk.end().is_some());
}

#[test]
fn the_last_mib_of_a_long_saved_conversation_is_kept() {
    let mut talk = talk(Template::World);
    say(&mut talk, "Who lives in the castle?");
    let (text, notes) = saved(&mut talk);
    let history = notes.history.clone().unwrap();
    let long = StateNotes { history: Some(format!("{}\n\n{history}", "é".repeat(1 << 20))), ..notes };
    talk.resume(&text, &long).unwrap();
    assert_eq!(talk.history(), format!("\n{history}"));
    talk.set_beginning(&text, &long).unwrap();
    assert_eq!(talk.history(), format!("\n{history}"));
}

#[test]
fn a_beginning_is_what_a_conversation_goes_back_to() {
    let mut talk = talk(Template::World);
    say(&mut talk, "Who lives in the castle?");
    let (text, notes) = saved(&mut talk);
    let mut other = self::talk(Template::World);
    other.set_beginning(&text, &notes).unwrap();
    for _ in 0..2 {
        say(&mut other, "And who else?");
        assert!(other.history().starts_with(&talk.history()));
        other.reset().unwrap();
        assert!(*other.session.state() == text.state);
    }
    other.set_system(None).unwrap();
    assert_eq!(other.session.state().tokens_read(), 0);
}

#[test]
fn a_text_that_is_no_conversation_in_this_template_is_refused() {
    let mut talk = talk(Template::World);
    say(&mut talk, "Who lives in the castle?");
    let (text, notes) = saved(&mut talk);
    let edited = |edit: fn(&mut Snapshot, &mut StateNotes)| {
        let (mut text, mut notes) = (text.clone(), notes.clone());
        edit(&mut text, &mut notes);
        (text, notes)
    };
    for ((text, notes), word) in [
        (edited(|_, notes| notes.template = None), "no conversation"),
        (edited(|_, notes| notes.template = Some("raven".into())), "template raven"),
        (edited(|text, _| text.pending = Some(5)), "inside a reply"),
        (edited(|_, notes| notes.unshown = vec![b'x']), "inside a reply"),
    ] {
        for error in [talk.resume(&text, &notes), talk.set_beginning(&text, &notes)] {
            assert!(error.unwrap_err().to_string().contains(word), "{word}");
        }
    }
    assert_eq!(talk.turns().len(), 1);
    // A tuned state has read nothing.
    let tuned = Snapshot::new(&model(), model().chat().sampling, 0).unwrap();
    talk.set_beginning(&tuned, &StateNotes::default()).unwrap();
    say(&mut talk, "Who lives in the castle?");
}

#[test]
fn the_plan_has_every_state() {
    let options = options(Template::World);
    let plan = Conversation::plan(&model(), &options).unwrap();
    assert_eq!(plan.state_bytes, 11 * State::bytes(model().config()));
    assert_eq!(*Conversation::new(model(), &options).unwrap().memory_plan(), plan);
    let error = Conversation::new(model(), &ConversationOptions { chat: None, ..options }).err().unwrap();
    assert!(error.to_string().contains("only continues text"), "{error}");
}
