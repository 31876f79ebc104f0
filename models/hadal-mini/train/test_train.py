"""Tests of the data, template, quantisation and dummy weights that need neither GPU nor trained weights."""
import json
import pathlib
import random
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import families as f
import render
from arithmetic import evaluate
from make_tokenizer import TEMPLATE
from words import Source, is_reserved

MODEL = pathlib.Path(__file__).parent.parent


class Data(unittest.TestCase):
    def test_thoughts_end_in_the_answer(self):
        source = Source(random.Random(1), False)
        for family in ("add", "sub", "mul", "mixed"):
            for _ in range(300):
                s = f.FAMILIES[family](source)
                self.assertEqual(s.thought.split(">")[-1], s.answer, s.thought)

    def test_arithmetic_is_right(self):
        rng = random.Random(2)
        for _ in range(2000):
            ops = [rng.choice("+-") for _ in range(rng.choice((1, 2, 3)))]
            if rng.random() < 0.5:
                ops[rng.randrange(len(ops))] = "*"
            operands = [rng.randint(0, 999) for _ in range(len(ops) + 1)]
            text = str(operands[0]) + "".join(o + str(n) for o, n in zip(ops, operands[1:]))
            self.assertEqual(evaluate(operands, ops)[0], eval(text))  # noqa: S307 digits and operators drawn above

    def test_splits_never_meet(self):
        for held_out in (False, True):
            source = Source(random.Random(3), held_out)
            for _ in range(300):
                self.assertEqual(is_reserved("word", source.word()), held_out)
                self.assertEqual(is_reserved("key", source.key()), held_out)
        training = Source(random.Random(4), False)
        for _ in range(500):
            a, b = f.FAMILIES["add"](training).thought.split("\n")[0].split("+")
            self.assertFalse(is_reserved("+", a, b))

    def test_reserve_is_five_percent(self):
        share = sum(is_reserved("+", a, b) for a in range(300) for b in range(300)) / 90000
        self.assertAlmostEqual(share, 0.05, delta=0.005)


class Template(unittest.TestCase):
    def test_fast_rendering_equals_the_template(self):
        import jinja2
        template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)
        source = Source(random.Random(5), False)
        for name, draw in {**f.FAMILIES, **f.TRAIN_ONLY}.items():
            for i in range(6):
                s = draw(source)
                messages = ([{"role": "system", "content": "Be brief."}] if i % 2 else []) + s.messages
                wanted = template.render(messages=messages, tools=s.tools, bos_token=render.BOS, eos_token=render.EOS,
                                         add_generation_prompt=True)
                self.assertEqual(wanted, render.prompt_text(messages, s.tools), name)

    def test_tool_arguments_are_read_back(self):
        text = f"x{render.CALLS}{render.call_text('calculator', f.tool_arguments('3 + 4'))}{render.END_CALLS}{render.EOS}"
        self.assertEqual(render.tool_call_arguments(text), "3 + 4")


class Tokenizer(unittest.TestCase):
    def test_no_merge_has_a_digit_and_letters_have_tokens(self):
        model = json.loads((MODEL / "tokenizer.json").read_text())["model"]
        for merge in model["merges"]:
            self.assertFalse(set("".join(merge)) & set("0123456789"), merge)
        for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
            self.assertIn("Ġ" + c, model["vocab"])


class Dummy(unittest.TestCase):
    def test_slices_equal_the_whole(self):
        import numpy as np
        from dummy_weights import uniform
        whole = uniform("model.layers.0.mlp.gate_proj.weight", 1000, seed=3)
        self.assertTrue(np.array_equal(whole[700:750], uniform("model.layers.0.mlp.gate_proj.weight", 50, seed=3, first=700)))
        self.assertTrue((whole >= -1).all() and (whole < 1).all() and abs(whole.mean()) < 0.1)


class Export(unittest.TestCase):
    def test_masters_survive_the_names(self):
        import torch
        from export import masters_of, named
        from model import E, MOE, initial_masters
        masters, bias = initial_masters(7, "cpu"), torch.linspace(0.05, 0.4, MOE * E).view(MOE, E)
        again, bias_again = masters_of(named(masters, bias.tolist()), "cpu")
        self.assertEqual(set(masters), set(again))
        for name, master in masters.items():
            self.assertTrue(torch.equal(master, again[name]), name)
        lowest = bias.min(-1, keepdim=True).values
        self.assertTrue(torch.allclose(bias - lowest + 0.05, bias_again))


class Experts(unittest.TestCase):
    def test_a_silent_document_presses_only_where_its_expert_was_chosen(self):
        import numpy as np
        import torch
        import packing
        import silence
        from model import E, MOE, Network, initial_masters
        from tokenizers import Tokenizer
        from train import to_device
        tokens, packing.TOKENS = packing.TOKENS, 1024
        tokenizer, rng = Tokenizer.from_file(str(MODEL / "tokenizer.json")), random.Random(8)
        source = Source(rng, False)
        item = packing.pack(rng, lambda: render.encode(tokenizer, f.FAMILIES["compare"](source), rng))
        packing.TOKENS = tokens
        pressure = silence.Pressure("cpu")
        step = silence.Silence(pressure, item, 1.0, "cpu")
        silent = (step.gone >= 0).any(0).numpy()
        self.assertTrue(silent.any() and not silent.all())
        self.assertEqual(int(((step.gone >= 0).sum(0) > 1).sum()), 0)
        self.assertFalse(step.item["m1"][silent].any())
        self.assertTrue(np.array_equal(step.item["m1"][~silent], item["m1"][~silent]))
        self.assertEqual(len(step.rows), int(item["m1"][silent].sum()))
        net = Network(initial_masters(9, "cpu"), torch.zeros(MOE, E), compile_it=False)
        net.refresh(False)
        batch = to_device(step.item, "cpu")
        out = net.forward(batch["ids"], batch["t1"], batch["m1"], batch["t2"], batch["m2"], batch["pos"], batch["cu"], batch["longest"],
                          False, 0.15, step)
        out[0].backward()
        self.assertTrue(all(bool(torch.isfinite(g).all()) for g in net.grads.values()))
        drawn = torch.bincount(step.experts, minlength=silence.EXPERTS) > 0
        self.assertTrue(bool((pressure.failed[drawn] > 0).any()), "an untrained model fails everywhere that its expert is chosen")
        self.assertFalse(bool(pressure.failed[~drawn].any()))

    def test_the_weight_grows_until_enough_documents_fail(self):
        import torch
        from silence import ENOUGH, Pressure
        pressure, one = Pressure("cpu"), torch.tensor([3])
        for _ in range(100):
            pressure.note(one, torch.ones(1), torch.zeros(1))
        self.assertGreater(float(pressure.of(one)), 1.5)
        self.assertEqual(float(pressure.weight[4]), float(pressure.weight[3]))
        while float(pressure.failed[3]) < ENOUGH:
            pressure.note(one, torch.ones(1), torch.ones(1))
        self.assertEqual(float(pressure.of(one)), 0.0)


if __name__ == "__main__":
    unittest.main()
