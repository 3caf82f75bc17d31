//! A template written anew, so that whatever makes a value larger asks for room first.
//!
//! The engine counts steps but not bytes, and its operators can't be replaced. So a template is
//! parsed by the engine's own parser and written again, with `a + b` as `a|bounded_add(b)`, which is
//! one of [`super::operators`]; `~`, `*`, slices, lists and maps likewise. Text that may end in a
//! variable is written by an expression, which the environment's formatter sees. Lines keep their
//! numbers, for errors.

mod expressions;

use minijinja::machinery::ast::{self, Expr, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Words and signs of a tag, at most. The engine's parser and code generator recurse over them.
const LONGEST_TAG: usize = 1000;

/// Branches of `elif` in a template, at most. Each lies within the one before.
const MOST_BRANCHES: usize = 200;

/// The template in the syntax that [`plain_syntax`] sets up.
pub(super) fn rewrite(source: &str) -> Result<String, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    check_tags(source, &syntax)?;
    let template = parse(source, "template", syntax)?;
    let mut writer = Writer { out: String::new(), line: 1, is_captured: false };
    writer.statement(&template)?;
    Ok(writer.out)
}

/// The syntax of what [`rewrite`] writes: all white space is text.
pub(super) fn plain_syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    syntax.expect("the delimiters are the usual ones")
}

fn check_tags(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut words, mut branches) = (0, 0);
    // What is no token is the parser's to tell.
    for (token, span) in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        words += 1;
        match token {
            Token::TemplateData(_) | Token::BlockStart | Token::VariableStart => words = 0,
            Token::Ident("elif") => branches += 1,
            _ => {}
        }
        if words > LONGEST_TAG || branches > MOST_BRANCHES {
            let what = match words > LONGEST_TAG {
                true => format!("line {}: a tag of more than {LONGEST_TAG} words", span.start_line),
                false => format!("more than {MOST_BRANCHES} branches of elif"),
            };
            return Err(Error::new(ErrorKind::SyntaxError, what));
        }
    }
    Ok(())
}

struct Writer {
    out: String,
    /// The line of `out` that is being written.
    line: u16,
    /// Whether the text may end in a variable.
    is_captured: bool,
}

impl Writer {
    fn statements(&mut self, statements: &[Stmt]) -> Result<(), Error> {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    /// Statements whose text may end in a variable.
    fn captured(&mut self, statements: &[Stmt]) -> Result<(), Error> {
        let outside = std::mem::replace(&mut self.is_captured, true);
        self.statements(statements)?;
        self.is_captured = outside;
        Ok(())
    }

    fn statement(&mut self, statement: &Stmt) -> Result<(), Error> {
        match statement {
            Stmt::Template(it) => self.statements(&it.children)?,
            Stmt::EmitRaw(it) => self.text(it.raw),
            Stmt::EmitExpr(it) => {
                self.out.push_str("{{");
                self.go_to(it.span());
                self.expression(&it.expr, 0);
                self.out.push_str(" }}");
            }
            Stmt::IfCond(it) => self.condition(it)?,
            Stmt::ForLoop(it) => self.loop_over(it)?,
            Stmt::WithBlock(it) => {
                self.tag("with", it.span());
                for (i, (target, value)) in it.assignments.iter().enumerate() {
                    self.out.push_str(if i > 0 { ", " } else { "" });
                    self.expression(target, 11);
                    self.out.push_str(" = ");
                    self.expression(value, 0);
                }
                self.close();
                self.statements(&it.body)?;
                self.out.push_str("{% endwith %}");
            }
            Stmt::Set(it) => {
                self.tag("set", it.span());
                self.target(&it.target);
                self.out.push_str(" = ");
                self.kept(&it.target, |writer, level| writer.expression(&it.expr, level));
                self.close();
            }
            Stmt::SetBlock(it) => {
                self.tag("set", it.span());
                self.target(&it.target);
                if let Some(filter) = &it.filter {
                    self.out.push_str(" |");
                    self.expression(filter, 9);
                }
                if matches!(it.target, Expr::GetAttr(_)) {
                    self.out.push_str(" |bounded_kept");
                }
                self.close();
                self.captured(&it.body)?;
                self.out.push_str("{% endset %}");
            }
            Stmt::FilterBlock(it) => {
                self.tag("filter", it.span());
                self.expression(&it.filter, 9);
                self.close();
                self.captured(&it.body)?;
                self.out.push_str("{% endfilter %}");
            }
            Stmt::Macro(it) => {
                self.tag("macro", it.span());
                self.out.push_str(it.name);
                self.parameters(it);
                self.close();
                self.captured(&it.body)?;
                self.out.push_str("{% endmacro %}");
            }
            Stmt::CallBlock(it) => {
                self.tag("call", it.span());
                self.parameters(&it.macro_decl);
                self.out.push(' ');
                self.call(&it.call);
                self.close();
                self.captured(&it.macro_decl.body)?;
                self.out.push_str("{% endcall %}");
            }
            Stmt::Continue(it) => self.lone("continue", it.span()),
            Stmt::Break(it) => self.lone("break", it.span()),
            Stmt::Do(it) => {
                self.tag("do", it.span());
                self.call(&it.call);
                self.close();
            }
            Stmt::AutoEscape(it) => return Err(unknown("autoescape", it.span())),
            Stmt::Block(it) => return Err(unknown("block", it.span())),
            Stmt::Import(it) => return Err(unknown("import", it.span())),
            Stmt::FromImport(it) => return Err(unknown("from", it.span())),
            Stmt::Extends(it) => return Err(unknown("extends", it.span())),
            Stmt::Include(it) => return Err(unknown("include", it.span())),
        }
        Ok(())
    }

    fn condition(&mut self, it: &ast::Spanned<ast::IfCond>) -> Result<(), Error> {
        self.tag("if", it.span());
        self.expression(&it.expr, 1);
        self.close();
        self.statements(&it.true_body)?;
        if !it.false_body.is_empty() {
            // An `elif` is an `if` alone in here, which would be too deep for the parser.
            let mut it = it;
            while let [Stmt::IfCond(branch)] = it.false_body.as_slice() {
                self.tag("elif", branch.span());
                self.expression(&branch.expr, 1);
                self.close();
                self.statements(&branch.true_body)?;
                it = branch;
            }
            if !it.false_body.is_empty() {
                self.out.push_str("{% else %}");
                self.statements(&it.false_body)?;
            }
        }
        self.out.push_str("{% endif %}");
        Ok(())
    }

    fn loop_over(&mut self, it: &ast::Spanned<ast::ForLoop>) -> Result<(), Error> {
        self.tag("for", it.span());
        self.target(&it.target);
        self.out.push_str(" in ");
        self.expression(&it.iter, 1);
        if let Some(filter) = &it.filter_expr {
            self.out.push_str(" if ");
            self.expression(filter, 1);
        }
        self.out.push_str(if it.recursive { " recursive" } else { "" });
        self.close();
        match it.recursive {
            true => self.captured(&it.body)?,
            false => self.statements(&it.body)?,
        }
        if !it.else_body.is_empty() {
            self.out.push_str("{% else %}");
            self.statements(&it.else_body)?;
        }
        self.out.push_str("{% endfor %}");
        Ok(())
    }

    /// Text of the template. A variable's is written by an expression, and so is what would be read
    /// as a tag.
    fn text(&mut self, text: &str) {
        if self.is_captured || text.contains('{') {
            self.out.push_str("{{ ");
            self.string(text);
            self.out.push_str(" }}");
        } else {
            self.out.push_str(text);
            let lines = text.bytes().filter(|&byte| byte == b'\n').count();
            self.line = self.line.saturating_add(u16::try_from(lines).unwrap_or(u16::MAX));
        }
    }

    fn tag(&mut self, name: &str, span: Span) {
        self.out.push_str("{%");
        self.go_to(span);
        self.out.push_str(name);
        self.out.push(' ');
    }

    fn lone(&mut self, name: &str, span: Span) {
        self.tag(name, span);
        self.close();
    }

    fn close(&mut self) {
        self.out.push_str(" %}");
    }

    /// Goes on in the line where `span` begins; what is written is never ahead.
    fn go_to(&mut self, span: Span) {
        while self.line < span.start_line {
            self.out.push('\n');
            self.line += 1;
        }
        self.out.push(' ');
    }

    /// What is assigned to: a name, a namespace's attribute, or several in parentheses.
    fn target(&mut self, target: &Expr) {
        match target {
            Expr::List(names) => self.items(&names.items, "(", ",)", Self::target),
            name => self.expression(name, 11),
        }
    }

    /// What a namespace is to hold is looked at, so that nothing comes to hold itself.
    fn kept(&mut self, target: &Expr, value: impl FnOnce(&mut Self, u8)) {
        if has_attribute(target) {
            value(self, 9);
            self.out.push_str("|bounded_kept");
        } else {
            value(self, 0);
        }
    }

    fn parameters(&mut self, it: &ast::Macro) {
        self.out.push('(');
        let plain = it.args.len() - it.defaults.len();
        for (i, name) in it.args.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            self.expression(name, 11);
            if let Some(default) = i.checked_sub(plain).map(|i| &it.defaults[i]) {
                self.out.push('=');
                self.expression(default, 0);
            }
        }
        self.out.push(')');
    }

    fn items<T>(&mut self, items: &[T], open: &str, close: &str, write: fn(&mut Self, &T)) {
        self.out.push_str(open);
        for (i, item) in items.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            write(self, item);
        }
        self.out.push_str(close);
    }
}

/// A chat template stands alone and is no HTML.
fn unknown(tag: &str, span: Span) -> Error {
    let what = format!("line {}: chat templates have no {{% {tag} %}}", span.start_line);
    Error::new(ErrorKind::SyntaxError, what)
}

fn has_attribute(target: &Expr) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(names) => names.items.iter().any(has_attribute),
        _ => false,
    }
}
