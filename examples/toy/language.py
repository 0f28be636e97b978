"""Write a corpus of tiny stories whose missing sentence follows only from the sentences after it.

Each story names one thing, drawn at random, in its second sentence; what happens later follows from that thing, and
nothing before it does. A left-to-right model must therefore guess the thing, one time in `len(THINGS)`; a model that
reads the end of the story need not. Beside the stories there are pairs of sentences that say one fact in two wordings.
"""

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

# Every thing takes the article "a", so that the article reveals nothing; after each thing, a synonym.
THINGS = {
    "raincoat": "a coat for wet days",
    "kite": "a toy for windy days",
    "violin": "something with four strings to play",
    "camera": "something to take pictures with",
    "candle": "a thing of wax that burns",
    "ladder": "something to climb on",
    "bicycle": "a thing with two wheels and pedals",
    "kettle": "a pot for hot water",
    "puppy": "a very young dog",
    "blanket": "a warm cover for the bed",
    "novel": "a long story to read",
    "shovel": "a tool to dig with",
    "boat": "something to row across the water",
    "clock": "a thing that tells the time",
    "cake": "something sweet from the oven",
    "hammer": "a tool to hit nails with",
}
# Consequences of each thing, which follow from no other.
CONSEQUENCES = {
    "raincoat": ("Soon it rained hard, but she stayed dry.", "When the storm broke, not a drop reached her."),
    "kite": ("The wind lifted it high above the trees.", "She let out the string and it flew up to the clouds."),
    "violin": ("She played a slow tune and the people danced.", "The music she made brought the whole street out."),
    "camera": ("She took a picture of the old bridge.", "Later she hung the best photos on the wall."),
    "candle": (
        "When the lamps went out, its flame lit the room.",
        "It burned all night and dripped wax on the table.",
    ),
    "ladder": ("She climbed up and mended the roof.", "With it she reached the apples at the top of the tree."),
    "bicycle": ("She pedaled down the hill as fast as she could.", "One wheel went flat halfway down the road."),
    "kettle": ("Before long the water boiled and tea was ready.", "Steam came out of it and she poured two cups."),
    "puppy": ("It wagged its tail and barked at the cat.", "It licked her hand and chewed her left shoe."),
    "blanket": ("The night was cold, but she slept warmly.", "She pulled it up to her chin and stopped shivering."),
    "novel": ("She read until the very last page.", "The hero of its last chapter made her cry."),
    "shovel": ("She dug a deep hole behind the house.", "By evening the snow was cleared from the path."),
    "boat": ("She rowed across the lake to the island.", "It leaked, and she had to swim back to the shore."),
    "clock": ("It rang at six and woke the whole family.", "Its hands stopped at noon and it ticked no more."),
    "cake": ("She cut it into eight slices and ate two.", "By evening only a few sweet crumbs were left."),
    "hammer": ("She drove nine nails into the fence.", "One careless blow of it hurt her thumb."),
}
# All names are female, so that pronouns carry no information.
PEOPLE = ("Anna", "Clara", "Emma", "Julia", "Laura", "Maria", "Nora", "Sara")
PLACES = {
    "market": "row of stalls",
    "harbor": "place where ships lie",
    "school": "house full of classrooms",
    "beach": "sandy shore",
    "station": "stop for trains",
    "farm": "home of cows and sheep",
    "museum": "hall of old paintings",
    "library": "room full of shelves",
}
TIMES = {
    "in the morning": "after breakfast",
    "at noon": "in the middle of the day",
    "in the evening": "when the sun went down",
    "on Sunday": "on the last day of the week",
}
VERBS = {"bought": "paid for", "found": "came upon", "borrowed": "took for a while", "lost": "left behind"}

OPENINGS = (
    "{name} went to the {place} {time}.",
    "{Time} {name} walked to the {place}.",
    "{name} and a friend were at the {place} {time}.",
    "{Time} {name} was alone at the {place}.",
    "It was {name} who came to the {place} {time}.",
)
# Frames have equal lengths, so that the length of a span reveals nothing.
MISSING = (
    "She found a {thing} under a bench.",
    "She bought a {thing} from a stranger.",
    "She borrowed a {thing} for the day.",
    "Someone gave her a {thing} to keep.",
    "There was a {thing} waiting for her.",
    "A friend lent her a {thing} there.",
)
FILLERS = (
    "Nobody else saw what happened.",
    "She thanked everyone and went away.",
    "It had not cost much at all.",
    "She told her brother about it.",
    "She did not think long.",
)
ENDINGS = (
    "{name} was proud of that day.",
    "{name} laughed about it for weeks.",
    "{name} never told anyone.",
    "{name} wanted to come again.",
    "It was a day to remember.",
)
FACTS = (
    "{name} {verb} {thing} at the {place} {time}.",
    "{Time} {name} {verb} {thing} at the {place}.",
    "At the {place}, {name} {verb} {thing} {time}.",
    "{Time}, at the {place}, {name} {verb} {thing}.",
)


@dataclass(frozen=True, kw_only=True)
class Story:
    """A story in three parts that join exactly: `prefix + missing + suffix`."""

    prefix: str
    missing: str
    suffix: str
    answer: str

    @property
    def text(self) -> str:
        """Return the whole story."""
        return self.prefix + self.missing + self.suffix


def draw_story(generator: random.Random) -> Story:
    """Draw a story; its thing is independent of everything up to and including the opening.

    Example:
        >>> story = draw_story(random.Random(0))
        >>> story.answer in story.missing, story.answer in story.prefix + story.suffix
        (True, False)
    """
    thing = generator.choice(tuple(THINGS))
    time = generator.choice(tuple(TIMES) + tuple(TIMES.values()))
    words = {
        "name": generator.choice(PEOPLE),
        "place": generator.choice(tuple(PLACES)),
        "time": time,
        "Time": time[0].upper() + time[1:],
        "thing": thing,
    }
    opening, missing = generator.choice(OPENINGS), generator.choice(MISSING)
    rest = [generator.choice(CONSEQUENCES[thing]), generator.choice(ENDINGS).format(**words)]
    if generator.random() < 0.5:
        rest.insert(0, generator.choice(FILLERS))
    return Story(
        prefix=opening.format(**words),
        missing=" " + missing.format(**words),
        suffix="".join(" " + sentence for sentence in rest),
        answer=thing,
    )


def draw_pair(generator: random.Random) -> tuple[str, str]:
    """Draw one fact in two wordings that share only the name and function words."""
    name = generator.choice(PEOPLE)
    thing, place = generator.choice(tuple(THINGS)), generator.choice(tuple(PLACES))
    time, verb = generator.choice(tuple(TIMES)), generator.choice(tuple(VERBS))
    plain = {"thing": f"a {thing}", "place": place, "time": time, "verb": verb}
    reworded = {"thing": THINGS[thing], "place": PLACES[place], "time": TIMES[time], "verb": VERBS[verb]}
    sentences = []
    for words in (plain, reworded):
        template = generator.choice(FACTS)
        sentences.append(template.format(name=name, Time=words["time"][0].upper() + words["time"][1:], **words))
    return sentences[0], sentences[1]


def write_corpus(output_dir: Path, *, seed: int, stories: int, pairs: int, tests: int) -> dict[str, Path]:
    """Write distinct stories and pairs as JSON lines, with a test part that training never sees."""
    generator = random.Random(seed)
    drawn_stories: dict[str, dict[str, str]] = {}
    drawn_pairs: dict[frozenset[str], dict[str, str]] = {}
    with tqdm(total=stories + pairs, desc="corpus", unit=" texts", leave=False, delay=1) as bar:
        while len(drawn_stories) < stories:
            story = draw_story(generator)
            drawn_stories.setdefault(story.text, asdict(story) | {"text": story.text})
            bar.update(len(drawn_stories) + len(drawn_pairs) - bar.n)
        while len(drawn_pairs) < pairs:
            anchor, positive = draw_pair(generator)
            fact = frozenset(re.findall(r"\w+", anchor.lower()))  # a fact in another word order is the same fact
            drawn_pairs.setdefault(fact, {"anchor": anchor, "positive": positive})
            bar.update(len(drawn_stories) + len(drawn_pairs) - bar.n)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, rows in (("stories", list(drawn_stories.values())), ("pairs", list(drawn_pairs.values()))):
        for part, chosen in (("test", rows[:tests]), ("train", rows[tests:])):
            path = paths[f"{name}_{part}"] = output_dir / f"{name}_{part}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return paths


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a file of `write_corpus`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
