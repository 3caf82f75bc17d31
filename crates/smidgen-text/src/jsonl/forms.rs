//! The forms that a sample may have, by the keys that are there.

use minijinja::value::{Value, ValueKind};

use super::features::{FeatureNames, Key};
use super::parse::{self, Object, SENTINEL};
use crate::chat::Chat;

/// What stands on a line.
pub(super) enum Sample {
    Text(String),
    Completion { prompt: String, completion: String },
    Chat(Chat),
}

/// A message with a role and a content.
pub(crate) fn message(role: &str, content: impl Into<Value>) -> Value {
    Value::from_pairs([("role", Value::from(role)), ("content", content.into())])
}

/// The sample on `line`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn sample(line: &str, names: &FeatureNames) -> Result<Sample, String> {
    let Object { entries, has_sentinel } = parse::object(line)?;
    let mut fields = Fields::new(entries, names)?;
    let sample = if fields.has(Key::Text) {
        Sample::Text(fields.text(Key::Text)?)
    } else if fields.has(Key::Chat) {
        Sample::Chat(fields.chat()?)
    } else if fields.has(Key::Prompt) && fields.has(Key::Completion) {
        fields.completion()?
    } else if fields.has(Key::Instruction) && fields.has(Key::Output) {
        Sample::Chat(fields.instruction()?)
    } else {
        return Err(format!("the keys do not make one sample: {}", fields.list()));
    };
    if let Sample::Chat(chat) = &sample {
        if has_sentinel {
            return Err(SENTINEL.into());
        }
        if chat.messages.is_empty() {
            return Err("the chat has no messages".into());
        }
    }
    match fields.values.is_empty() {
        true => Ok(sample),
        false => Err(format!("the keys do not make one sample: {} too", fields.list())),
    }
}

/// What stands under the line's keys, and is taken from here; nulls are left out.
struct Fields<'n> {
    names: &'n FeatureNames,
    values: Vec<(Key, Value)>,
}

impl<'n> Fields<'n> {
    fn new(entries: Vec<(String, Value)>, names: &'n FeatureNames) -> Result<Self, String> {
        let mut fields = Self { names, values: Vec::new() };
        for (name, value) in entries {
            if names.ignored.contains(&name) {
                continue;
            }
            let Some(key) = names.key(&name) else {
                return Err(format!(
                    "the key {name:?} is unknown; known: {}; --ignore-features lets others stand \
                     there unread",
                    names.known()
                ));
            };
            if value.is_none() {
                continue;
            }
            if fields.has(key) {
                return Err(format!("the key {name:?} says again what another one says"));
            }
            fields.values.push((key, value));
        }
        Ok(fields)
    }

    fn has(&self, key: Key) -> bool {
        self.values.iter().any(|(there, _)| *there == key)
    }

    fn take(&mut self, key: Key) -> Option<Value> {
        let place = self.values.iter().position(|(there, _)| *there == key)?;
        Some(self.values.swap_remove(place).1)
    }

    /// The string under a key that is there, or an empty one.
    fn text(&mut self, key: Key) -> Result<String, String> {
        match self.take(key) {
            None => Ok(String::new()),
            Some(value) => text(&value, self.names.name(key)),
        }
    }

    /// The names of what is left.
    fn list(&self) -> String {
        let names = self.values.iter().map(|(key, _)| format!("{:?}", self.names.name(*key)));
        let names: Vec<_> = names.collect();
        if names.is_empty() { "there are none".into() } else { names.join(", ") }
    }

    /// Messages with `role` and `content`, or ShareGPT's with `from` and `value`.
    fn chat(&mut self) -> Result<Chat, String> {
        let name = self.names.name(Key::Chat);
        let list = self.take(Key::Chat).unwrap_or_default();
        let mut messages = messages(&list, name, self.names)?;
        let system = self.text(Key::System)?;
        if !system.is_empty() {
            if messages.first().is_some_and(is_system) {
                return Err("the chat has a system message, and \"system\" is another".into());
            }
            messages.insert(0, message("system", system));
        }
        Ok(Chat { messages, tools: self.tools()?, learned_from: 0 })
    }

    /// Two strings, or two lists of messages that make one chat.
    fn completion(&mut self) -> Result<Sample, String> {
        let [prompt, completion] =
            [Key::Prompt, Key::Completion].map(|key| self.take(key).unwrap_or_default());
        let [prompt_name, name] = [Key::Prompt, Key::Completion].map(|key| self.names.name(key));
        if prompt.kind() != ValueKind::Seq {
            let prompt = text(&prompt, prompt_name)?;
            return Ok(Sample::Completion { prompt, completion: text(&completion, name)? });
        }
        let mut chat = messages(&prompt, prompt_name, self.names)?;
        let learned_from = chat.len();
        let completion = messages(&completion, name, self.names)?;
        if completion.is_empty() {
            return Err("the completion is empty".into());
        }
        chat.extend(completion);
        Ok(Sample::Chat(Chat { messages: chat, tools: self.tools()?, learned_from }))
    }

    /// Alpaca's form: earlier questions and answers, an instruction with an input below, an output.
    fn instruction(&mut self) -> Result<Chat, String> {
        let mut messages = Vec::new();
        let system = self.text(Key::System)?;
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        for pair in self.take(Key::History).iter().map(|history| items(history, "history")) {
            for pair in pair? {
                let pair = items(&pair, "history")?;
                let [question, answer] = pair.as_slice() else {
                    return Err("\"history\" holds pairs of a question and an answer".into());
                };
                messages.push(message("user", text(question, "history")?));
                messages.push(message("assistant", text(answer, "history")?));
            }
        }
        let (mut question, input) = (self.text(Key::Instruction)?, self.text(Key::Input)?);
        if !input.is_empty() {
            question = format!("{question}\n\n{input}");
        }
        messages.push(message("user", question));
        messages.push(message("assistant", self.text(Key::Output)?));
        Ok(Chat { messages, tools: Value::from(()), learned_from: 0 })
    }

    /// A list of functions' schemas, or a string that holds one.
    fn tools(&mut self) -> Result<Value, String> {
        match self.take(Key::Tools) {
            None => Ok(Value::from(())),
            Some(tools) if tools.kind() == ValueKind::Seq => Ok(tools),
            Some(tools) => match tools.as_str() {
                Some("") => Ok(Value::from(())),
                Some(text) => parse::list(text).map_err(|what| format!("\"tools\": {what}")),
                None => Err(wrong_kind("tools", &tools, "a list")),
            },
        }
    }
}

/// The messages of a list, as templates take them.
fn messages(list: &Value, name: &str, names: &FeatureNames) -> Result<Vec<Value>, String> {
    let of = |(number, message): (usize, Value)| {
        let made = if message.kind() != ValueKind::Map {
            Err(format!("this is {}, and an object is expected", an(&message)))
        } else if field(&message, "from").is_some() && field(&message, "role").is_none() {
            shared(&message, names)
        } else {
            plain(message)
        };
        made.map_err(|what| format!("message {number} of {name:?}: {what}"))
    };
    (1..).zip(items(list, name)?).map(of).collect()
}

/// A message with a role. Its reasoning, under whichever of three names, is seen under two of them,
/// as transformers shows it.
fn plain(message: Value) -> Result<Value, String> {
    match field(&message, "role") {
        None => return Err("it has no \"role\"".into()),
        Some(role) if role.as_str().is_none() => {
            return Err(wrong_kind("role", &role, "a string"));
        }
        Some(_) => {}
    }
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| field(&message, name));
    let Some(reasoning) = reasoning else { return Ok(message) };
    let mut pairs = vec![(Value::from("thinking"), reasoning.clone())];
    let own = message.try_iter().map_err(|error| error.to_string())?;
    pairs.extend(own.map(|key| (key.clone(), message.get_item(&key).unwrap_or_default())));
    pairs.push((Value::from("reasoning_content"), reasoning));
    Ok(Value::from_pairs(pairs))
}

/// ShareGPT's message: who it is from, and a value.
fn shared(shared: &Value, names: &FeatureNames) -> Result<Value, String> {
    for key in shared.try_iter().map_err(|error| error.to_string())? {
        let key = key.to_string();
        if !["from", "value"].contains(&&*key) && !names.ignored.contains(&key) {
            return Err(format!(
                "the key {key:?} is unknown; known: from, value; --ignore-features lets others \
                 stand there unread"
            ));
        }
    }
    let from = text(&field(shared, "from").unwrap_or_default(), "from")?;
    let value = text(&field(shared, "value").unwrap_or_default(), "value")?;
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatbot" | "model" => "assistant",
        "system" => "system",
        "observation" | "tool" | "function_response" => "tool",
        "function_call" | "tool_call" => return tool_call(&value),
        _ => {
            return Err(format!(
                "it is from {from:?}, which is unknown; known: human, user, gpt, assistant, \
                 chatbot, model, system, function_call, tool_call, observation, tool, \
                 function_response"
            ));
        }
    };
    Ok(message(role, value))
}

/// The assistant's call of functions: an object with `name` and `arguments`, or a list of such.
fn tool_call(text: &str) -> Result<Value, String> {
    let expected = |what: String| {
        format!("a call is {{\"name\": \"…\", \"arguments\": {{…}}}} or a list of such, and {what}")
    };
    let value = parse::value(text).map_err(expected)?;
    let calls = match value.kind() {
        ValueKind::Map => vec![value],
        ValueKind::Seq => items(&value, "value")?,
        _ => return Err(expected(format!("this is {}", an(&value)))),
    };
    if let Some(call) = calls.iter().find(|call| field(call, "name").is_none()) {
        return Err(expected(format!("{call} has no name")));
    }
    let calls: Vec<Value> = calls
        .into_iter()
        .map(|call| Value::from_pairs([("type", Value::from("function")), ("function", call)]))
        .collect();
    Ok(Value::from_pairs([
        ("role", Value::from("assistant")),
        ("content", Value::from("")),
        ("tool_calls", Value::from(calls)),
    ]))
}

/// What a map holds under `key`; none for null.
fn field(map: &Value, key: &str) -> Option<Value> {
    map.get_attr(key).ok().filter(|value| !value.is_undefined() && !value.is_none())
}

fn is_system(message: &Value) -> bool {
    field(message, "role").is_some_and(|role| role.as_str() == Some("system"))
}

fn items(list: &Value, name: &str) -> Result<Vec<Value>, String> {
    match list.kind() {
        ValueKind::Seq => Ok(list.try_iter().map_err(|error| error.to_string())?.collect()),
        _ => Err(wrong_kind(name, list, "a list")),
    }
}

fn text(value: &Value, name: &str) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong_kind(name, value, "a string"))
}

fn wrong_kind(name: &str, value: &Value, expected: &str) -> String {
    format!("{name:?} is {}, and {expected} is expected", an(value))
}

/// The kind of a value, as JSON calls it.
fn an(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::None => "null",
        ValueKind::Undefined => "missing",
        ValueKind::Bool => "true or false",
        ValueKind::Number => "a number",
        ValueKind::String => "a string",
        ValueKind::Seq => "a list",
        _ => "an object",
    }
}
