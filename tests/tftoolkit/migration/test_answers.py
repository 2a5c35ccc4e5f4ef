"""Each public symbol of TensorFlow Addons has an answer, what that names exists, and the page says the same."""

import ast
import builtins
import inspect
import re
from pathlib import Path

import keras
import pytest
import tensorflow as tf
import tfa_cases

from tftoolkit import custom_ops, pipelines, trainers
from tftoolkit.migration import answers as module
from tftoolkit.migration.answers import KINDS, answers, recipe_source, symbols

ROOT = Path(__file__).parents[3]
NAMES = {"tf": tf, "keras": keras, "trainers": trainers, "custom_ops": custom_ops, "pipelines": pipelines}
CALLED = {symbol: answer for symbol, answer in answers().items() if answer.kind in ("ours", "builtin")}
RECIPES = sorted({answer.text for answer in answers().values() if answer.kind == "recipe"})


def _found(dotted):
    first, *rest = dotted.split(".")
    value = NAMES[first]
    for name in rest:
        value = getattr(value, name)
    return value


def test_every_symbol_has_an_answer_and_no_other_has():
    assert len(symbols()) == 197
    assert answers().keys() == symbols().keys()
    assert all(answer.kind in KINDS and answer.text.strip() for answer in answers().values())


@pytest.mark.parametrize("symbol", CALLED)
def test_what_an_answer_calls_exists_and_takes_the_arguments(symbol):
    text = CALLED[symbol].text
    tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.Call):
        _found(text)
        return
    function = _found(ast.unparse(tree.func))
    assert callable(function)
    given = {keyword.arg: None for keyword in tree.keywords}
    inspect.signature(function).bind(*[None] * len(tree.args), **given)
    taken = inspect.signature(function).parameters
    assert given.keys() <= taken.keys()  # not by **kwargs


@pytest.mark.parametrize("symbol", answers())
def test_what_else_an_answer_names_exists(symbol):
    answer = answers()[symbol]
    text = answer.differs + (answer.text if answer.kind == "none" else "")
    for dotted in re.findall(rf"(?<![\w.])(?:{'|'.join(NAMES)})(?:\.\w+)+", text):
        _found(dotted)
    for recipe in re.findall(r"recipe (\w+\.\w+)", text):
        recipe_source(recipe)
    for keyword in re.findall(r"trainers\.Update\((\w+)=", text):
        assert keyword in inspect.signature(trainers.Update).parameters


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_executed_by_a_test(recipe):
    by_values = {answers()[name.partition(" ")[0]].text for name in tfa_cases.load()}
    by_hand = Path(__file__).with_name("test_recipes_by_hand.py").read_text()
    assert recipe in by_values or f"{recipe}(" in by_hand


def test_a_recipe_comes_with_all_that_it_uses():
    for recipe in RECIPES[::4]:  # parsing takes its time
        source = f"{module.recipe_imports(recipe.partition('.')[0])}\n{recipe_source(recipe)}"
        tree = ast.parse(source)
        made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        made |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        made |= {(node.asname or node.name) for node in ast.walk(tree) if isinstance(node, ast.alias)}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert used <= made | set(dir(builtins)) | {"scipy"}, recipe
    with pytest.raises(KeyError):
        recipe_source("losses.nothing")


def test_the_page_is_made_of_the_answers(load_module):
    page = load_module(ROOT / "tools/tfa_page.py").page()
    assert (ROOT / "docs/tfa_migration.md").read_text() == page, "run tools/tfa_page.py"
    rows = [line for line in page.splitlines() if line.startswith("| `") and not line.startswith("| `tfa.`")]
    assert len(rows) == len(symbols())
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3
        assert all(cells), row
