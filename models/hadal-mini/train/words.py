"""Words, keys and the hash reserve: what training may never see.

A value is reserved when a CRC of its canonical text falls into 1 of 20 buckets. Training rejects reserved operands, words
and keys; the evaluation draws only reserved ones.
"""
import zlib

ONSETS = ("b c d f g h j k l m n p r s t v w z br cr dr fr gr tr bl cl fl gl pl sl sh ch th st sp sk sn sm tw qu x y".split()
          + [""])
VOWELS = "a e i o u a e i o u a e i o u ai ea ee oo ou oa ie y au".split()
CODAS = ["", "", "", "", "n", "r", "s", "t", "l", "m", "k", "d", "p", "ck", "ng", "nd", "st", "x", "b", "g", "sh", "ff", "z"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

COMMON = """apple river stone window garden yellow orange purple silver golden butter cheese coffee bottle pencil paper
school teacher student doctor engineer captain harbor island mountain valley forest desert ocean bridge castle village
market kitchen blanket pillow candle mirror ladder hammer needle button pocket jacket summer winter spring autumn monday
tuesday friday sunday january march april august october music guitar violin piano trumpet drum dance story poem novel
letter number planet rocket comet galaxy gravity energy carbon oxygen copper magnet engine wheel tractor bicycle airplane
tomato potato carrot onion pepper garlic banana cherry lemon melon peach berry strawberry blueberry raspberry walnut
chicken turkey rabbit monkey elephant tiger lion zebra giraffe dolphin whale shark eagle falcon parrot penguin turtle
lizard spider beetle butterfly mosquito dragon unicorn wizard knight queen king prince throne crown sword shield arrow
computer keyboard screen server network memory kernel cache token model tensor vector matrix graph thread socket packet
mississippi committee bookkeeper parallel balloon occurrence successful necessary tomorrow address hello world
deep learning reason answer question simple complex quick brown jump lazy happy quiet bright cloud thunder lightning
rainbow snowflake hurricane tornado earthquake volcano glacier canyon meadow prairie jungle swamp lagoon""".split()

FIRST_NAMES = "Anna Ben Carla David Elena Frank Grace Henry Ivy Jack Karen Leo Mia Noah Olga Peter Quinn Rosa Sam Tina Uma Victor Wendy Xena Yusuf Zoe".split()
COLORS = "red green blue black white yellow purple orange silver golden brown pink".split()
CITIES = "Paris Berlin Madrid Rome Tokyo Oslo Cairo Lima Delhi Dublin Vienna Prague Athens Lisbon Seoul Beijing Shanghai".split()


def is_reserved(*parts):
    """True for the 5 % of values that only the evaluation may use."""
    return zlib.crc32(("hadal|" + "|".join(map(str, parts))).encode()) % 20 == 0


def pseudo_word(rng, lo=3, hi=10):
    while True:
        kind = rng.random()
        if kind < 0.12:
            word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(lo, min(hi, 8))))
        else:
            word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(1, 4)))
        if lo <= len(word) <= hi:
            return word


class Source:
    """Random draws for one split: `held_out` False = training, True = evaluation."""

    def __init__(self, rng, held_out):
        self.rng = rng
        self.held_out = held_out

    def allowed(self, *parts):
        return is_reserved(*parts) == self.held_out

    def draw(self, make, *tag):
        """make() until its value (with tag) belongs to this split."""
        while True:
            value = make()
            if self.allowed(*tag, *(value if isinstance(value, tuple) else (value,))):
                return value

    def word(self, lo=3, hi=10):
        def make():
            if self.rng.random() < 0.15:
                word = self.rng.choice(COMMON)
                if lo <= len(word) <= hi:
                    return word
            return pseudo_word(self.rng, lo, hi)
        return self.draw(make, "word")

    def key(self):
        return self.draw(lambda: pseudo_word(self.rng, 4, 9), "key")

    def number(self, hi=999):
        """Lengths 1, 2, 3 digits all common; uniform within a length."""
        digits = self.rng.choices((1, 2, 3), (1, 2, 5))[0] if hi >= 100 else self.rng.choice((1, 2)[: 1 if hi < 10 else 2])
        return self.rng.randint(0 if digits == 1 else 10 ** (digits - 1), min(hi, 10 ** digits - 1))
