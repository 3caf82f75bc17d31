//! The expressions of a template, with as few parentheses as their order needs: the engine's parser
//! takes no more than some hundred of them within each other.

use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, UnaryOpKind};
use minijinja::value::{Value, ValueKind};

use super::Writer;

impl Writer {
    /// An expression, in parentheses if it binds less than `level`: 0 if-else, 1 or, 2 and, 3 not,
    /// 4 comparisons, 5 sums, 7 products, 8 powers, 9 filters and tests, 10 minus, 11 all else.
    pub(super) fn expression(&mut self, expression: &Expr, level: u8) {
        let own = binding(expression);
        if own < level {
            self.out.push('(');
            self.bare(expression, own);
            self.out.push(')');
        } else {
            self.bare(expression, own);
        }
    }

    fn bare(&mut self, expression: &Expr, own: u8) {
        match expression {
            Expr::Var(it) => self.out.push_str(it.id),
            Expr::Const(it) => self.constant(&it.value),
            Expr::Slice(it) => {
                self.expression(&it.expr, 9);
                self.out.push_str("|bounded_slice(");
                for (i, bound) in [&it.start, &it.stop, &it.step].into_iter().enumerate() {
                    self.out.push_str(if i > 0 { ", " } else { "" });
                    match bound {
                        Some(bound) => self.expression(bound, 0),
                        None => self.out.push_str("none"),
                    }
                }
                self.out.push(')');
            }
            Expr::UnaryOp(it) => {
                self.out.push_str(if matches!(it.op, UnaryOpKind::Not) { "not " } else { "-" });
                self.expression(&it.expr, own);
            }
            Expr::BinOp(it) => self.operation(it, own),
            Expr::Compare(it) => {
                self.expression(&it.expr, 5);
                for next in &it.ops {
                    self.out.push_str(comparison(next.op));
                    self.expression(&next.expr, 5);
                }
            }
            Expr::IfExpr(it) => {
                self.expression(&it.true_expr, 1);
                self.out.push_str(" if ");
                self.expression(&it.test_expr, 1);
                if let Some(other) = &it.false_expr {
                    self.out.push_str(" else ");
                    self.expression(other, 0);
                }
            }
            Expr::Filter(it) => {
                if let Some(of) = &it.expr {
                    self.expression(of, 9);
                    self.out.push('|');
                }
                self.out.push_str(it.name);
                self.items(&it.args, "(", ")", Self::argument);
            }
            Expr::Test(it) => {
                self.expression(&it.expr, 9);
                self.out.push_str(" is ");
                self.out.push_str(it.name);
                self.items(&it.args, "(", ")", Self::argument);
            }
            Expr::GetAttr(it) => {
                self.expression(&it.expr, 11);
                self.out.push('.');
                self.out.push_str(it.name);
            }
            Expr::GetItem(it) => {
                self.expression(&it.expr, 11);
                self.out.push('[');
                self.expression(&it.subscript_expr, 0);
                self.out.push(']');
            }
            Expr::Call(it) => self.call(it),
            Expr::List(it) => {
                self.items(&it.items, "[", "]", |writer, item| writer.expression(item, 0));
                self.made(own);
            }
            Expr::Tuple(it) => {
                let close = if it.items.is_empty() { ")" } else { ",)" };
                self.items(&it.items, "(", close, |writer, item| writer.expression(item, 0));
                self.made(own);
            }
            Expr::Map(it) => {
                self.out.push('{');
                for (i, (key, value)) in it.keys.iter().zip(&it.values).enumerate() {
                    self.out.push_str(if i > 0 { ", " } else { "" });
                    self.expression(key, 0);
                    self.out.push_str(": ");
                    self.expression(value, 0);
                }
                self.out.push('}');
                self.made(own);
            }
        }
    }

    /// Behind a list or map: looks at it, unless all in it are constants.
    fn made(&mut self, own: u8) {
        self.out.push_str(if own == 9 { "|bounded_new" } else { "" });
    }

    fn operation(&mut self, it: &ast::BinOp, own: u8) {
        let bounded = match it.op {
            BinOpKind::Add => "bounded_add",
            BinOpKind::Concat => "bounded_concat",
            BinOpKind::Mul => "bounded_mul",
            op => {
                // Comparisons do not chain here, and all else is read from the left.
                self.expression(&it.left, own + u8::from(own == 4));
                self.out.push_str(operator(op));
                return self.expression(&it.right, own + 1);
            }
        };
        // a + b + c is a|bounded_add(b, c).
        let same = |expression: &Expr| {
            matches!(expression, Expr::BinOp(inner)
                if std::mem::discriminant(&inner.op) == std::mem::discriminant(&it.op))
        };
        let (mut first, mut others) = (&it.left, vec![&it.right]);
        while same(first)
            && let Expr::BinOp(inner) = first
        {
            others.push(&inner.right);
            first = &inner.left;
        }
        self.expression(first, 9);
        self.out.push('|');
        self.out.push_str(bounded);
        others.reverse();
        self.items(&others, "(", ")", |writer, term| writer.expression(term, 0));
    }

    pub(super) fn call(&mut self, it: &ast::Call) {
        self.expression(&it.expr, 11);
        self.items(&it.args, "(", ")", Self::argument);
    }

    fn argument(&mut self, argument: &CallArg) {
        let (before, value) = match argument {
            CallArg::Pos(value) => ("", value),
            CallArg::Kwarg(name, value) => {
                self.out.push_str(name);
                ("=", value)
            }
            CallArg::PosSplat(value) => ("*", value),
            CallArg::KwargSplat(value) => ("**", value),
        };
        self.out.push_str(before);
        self.expression(value, 0);
    }

    fn constant(&mut self, value: &Value) {
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Number if !value.is_integer() => {
                let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
                // The only constant that is not finite is one too large for an f64.
                let text = if number.is_finite() { format!("{number:?}") } else { "1e999".into() };
                self.out.push_str(&text);
            }
            _ => self.out.push_str(&value.to_string()),
        }
    }

    pub(super) fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// How much an expression binds as it is written here.
fn binding(expression: &Expr) -> u8 {
    let all_constant = |items: &[Expr]| items.iter().all(|item| matches!(item, Expr::Const(_)));
    let made = |is_constant| if is_constant { 11 } else { 9 };
    match expression {
        Expr::IfExpr(_) => 0,
        Expr::BinOp(it) => match it.op {
            BinOpKind::ScOr => 1,
            BinOpKind::ScAnd => 2,
            BinOpKind::Sub => 5,
            BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem => 7,
            BinOpKind::Pow => 8,
            BinOpKind::Add | BinOpKind::Concat | BinOpKind::Mul => 9,
            _ => 4,
        },
        Expr::Compare(_) => 4,
        Expr::UnaryOp(it) => {
            if matches!(it.op, UnaryOpKind::Not) {
                3
            } else {
                10
            }
        }
        Expr::Slice(_) | Expr::Filter(_) | Expr::Test(_) => 9,
        Expr::List(it) => made(all_constant(&it.items)),
        Expr::Tuple(it) => made(all_constant(&it.items)),
        Expr::Map(it) => made(all_constant(&it.keys) && all_constant(&it.values)),
        Expr::Var(_) | Expr::Const(_) | Expr::GetAttr(_) | Expr::GetItem(_) | Expr::Call(_) => 11,
    }
}

fn operator(op: BinOpKind) -> &'static str {
    match op {
        BinOpKind::Eq => " == ",
        BinOpKind::Ne => " != ",
        BinOpKind::Lt => " < ",
        BinOpKind::Lte => " <= ",
        BinOpKind::Gt => " > ",
        BinOpKind::Gte => " >= ",
        BinOpKind::In => " in ",
        BinOpKind::ScAnd => " and ",
        BinOpKind::ScOr => " or ",
        BinOpKind::Add => " + ",
        BinOpKind::Sub => " - ",
        BinOpKind::Mul => " * ",
        BinOpKind::Div => " / ",
        BinOpKind::FloorDiv => " // ",
        BinOpKind::Rem => " % ",
        BinOpKind::Pow => " ** ",
        BinOpKind::Concat => " ~ ",
    }
}

fn comparison(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => " == ",
        CompareOpKind::Ne => " != ",
        CompareOpKind::Lt => " < ",
        CompareOpKind::Lte => " <= ",
        CompareOpKind::Gt => " > ",
        CompareOpKind::Gte => " >= ",
        CompareOpKind::In => " in ",
        CompareOpKind::NotIn => " not in ",
    }
}
