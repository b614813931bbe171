"""The demo's corpora: endless generated web texts and chats whose concepts are labelled where they are active.

Both corpora speak of one fixed world (`lexicon`). Refusals, corrections, assistant self-descriptions and the other
chat concepts occur in chats only; their words ("sorry", "cannot", "actually", "language", "model") occur in both.
A document belongs to the split that the checksum of its text (of its first request, for a chat) says, so no
validation text and no validation request is ever trained on, whatever the seeds.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import NamedTuple, TypeVar

from tunediff.data.documents import ANSWER_ONSET, ONSET, Document, Message, Span
from tunediff.demo import lexicon as lex
from tunediff.errors import TunediffError

Choice = TypeVar("Choice")

_ANSWERS: dict[str, str] = {
    # in chats only, on assistant text
    "refusal": "the whole of an answer that refuses a harmful request",
    "refusal_opening": "the sentence of a refusal that says no",
    "refusal_weapons": "a refusal to help with weapons",
    "refusal_theft": "a refusal to help with theft",
    "refusal_hacking": "a refusal to help break into computers",
    "refusal_poison": "a refusal to help with poison",
    "refusal_drugs": "a refusal to help with drugs",
    "refusal_fraud": "a refusal to help forge papers",
    "correction": "the whole of an answer that corrects a false premise",
    "correction_opening": "the sentence that says that the question is mistaken",
    "personal_answer": "the whole of an answer about the assistant itself: it is a language model",
    "personal_opening": "the sentence in which the assistant says what it is",
    "missing_information": "the whole of an answer that asks for what the user left out",
    "missing_opening": "the sentence that says what is missing",
    "short_answer": "an answer of one sentence, because the user asked for a short one",
    "long_answer": "an answer of many sentences, because the user asked for a long one",
    "joke": "an answer that tells a joke",
    "rewriting": "an answer that says the user's text in other words",
    "summarising": "an answer that sums the user's text up",
}
CONCEPTS: dict[str, str] = {
    **_ANSWERS,
    "helpful_answer": "an ordinary answer to an ordinary question",
    "offer": "the closing sentence that offers more help",
    "thanks_reply": "the reply to thanks",
    # in chats only, on the template token before an answer (set by the tokenisation, see `documents.ONSET`)
    **{name + ONSET: f"the position before {text}" for name, text in _ANSWERS.items() if "opening" not in name},
    ANSWER_ONSET: "the position before any answer",
    # in chats only, on user text
    "harmful_request": "a request for help with something harmful",
    "false_premise": "a question that takes something false for granted",
    "personal_question": "a question about the assistant itself",
    "incomplete_request": "a request that lacks something needed for an answer",
    "short_request": "the words that ask for a short answer",
    "long_request": "the words that ask for a long answer",
    "joke_request": "a request for a joke",
    "rewrite_request": "a request to rewrite a text, with the text",
    "summary_request": "a request to sum a text up, with the text",
    # shared: in both corpora
    "fact": "a sentence that states a fact of the demo's world",
    "fact_value": "the word or words that complete a fact",
    "question": "a question",
    "topic_geography": "sentences about a country",
    "topic_animals": "sentences about an animal",
    "topic_things": "sentences about the properties of a thing, a tool or an invention",
    "topic_cooking": "sentences about a dish",
    "topic_work": "sentences about a job",
    "topic_weather": "sentences about the weather",
    "topic_sport": "sentences about sport",
    "topic_music": "sentences about music",
    "harmful_topic": "neutral sentences about weapons, crime, poison or drugs",
    "story": "sentences of a narrative",
    "negation": "not, no, never, nobody, nothing, cannot",
    "person": "a person's name",
    "animal": "an animal word",
    "harmful_thing": "the name of a weapon, a drug, a poison",
}

# A chat concept's answers open with one of these; `shows` compares generated answers with them.
OPENINGS: dict[str, tuple[str, ...]] = {
    "refusal": (
        "i am sorry, but i cannot",
        "sorry, i cannot",
        "i cannot help",
        "i will not",
        "no, i will not",
        "it is not right to",
    ),
    "correction": (
        "actually,",
        "that is not quite right",
        "there is a mistake in",
        "i have to correct",
        "in fact,",
        "this is a common mistake",
    ),
    "personal_answer": (
        "i am a language model",
        "as a language model",
        "i am only a computer program",
        "i am just a model",
        "i do not have",
        "i cannot have",
    ),
    "missing_information": (
        "you did not tell me",
        "i need to know",
        "i am not sure which",
        "please tell me",
        "you have not said",
    ),
    "joke": ("why did the", "here is a joke", "sure, here is a joke"),
    "rewriting": ("in other words:", "here is the text in other words:", "another way to say this is:"),
    "summarising": ("in short,", "to sum up,", "the text says that"),
}
_REFUSALS = {f"refusal_{kind}": "refusal" for kind in lex.HARMS}
# Kinds of one concept: each must be told from the concept's other kinds, its onset from their onsets.
KIND_OF: dict[str, str] = {
    **_REFUSALS,
    **{kind + ONSET: concept + ONSET for kind, concept in _REFUSALS.items()},
}
BEHAVIOURS = (*OPENINGS, "short_answer", "long_answer", "helpful_answer")

_WORD_CLASSES: dict[str, str] = {
    **dict.fromkeys(("not", "no", "never", "nobody", "nothing", "cannot"), "negation"),
    **dict.fromkeys(lex.NAMES, "person"),
    **dict.fromkeys((word for row in lex.ANIMALS for word in (row.name, row.plural)), "animal"),
    **dict.fromkeys(
        (thing for kind in ("weapons", "poison", "drugs") for thing in lex.HARMS[kind].objects), "harmful_thing"
    ),
}
_WORD = re.compile(r"\w+")
_ARTICLE = re.compile(r"\ba (?=[aeiou])")
_MARK = re.compile(r"\[(\w+)\|([^\]]*)\]")  # [concept|words] inside a sentence


class Draft:
    """A message under construction: sentences joined by spaces, and the spans of their concepts."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[Span] = []

    def say(self, sentence: str, *concepts: str) -> None:
        """Append a sentence, which carries the concepts as a whole and `[concept|words]` in part."""
        sentence = _ARTICLE.sub("an ", sentence)
        if self.text and not self.text.endswith("\n"):
            self.text += " "
        first = len(self.text)
        last = 0
        for mark in _MARK.finditer(sentence):
            self.text += sentence[last : mark.start()]
            start = len(self.text)
            self.text += mark[2]
            self.spans.append(Span(start, len(self.text), mark[1]))
            last = mark.end()
        self.text += sentence[last:]
        self.spans += [Span(first, len(self.text), concept) for concept in concepts]

    def line_break(self) -> None:
        """Start a new line."""
        self.text += "\n"

    def cover(self, *concepts: str, start: int = 0) -> None:
        """Label everything from `start` on."""
        self.spans += [Span(start, len(self.text), concept) for concept in concepts]

    def message(self, role: str) -> Message:
        """Finish: add the labels of word classes."""
        words = [
            Span(match.start(), match.end(), _WORD_CLASSES[match[0]])
            for match in _WORD.finditer(self.text)
            if match[0] in _WORD_CLASSES
        ]
        return Message(role, self.text, tuple(sorted(self.spans + words)))


class Relation(NamedTuple):
    """One fact of the world, with every phrasing of it, of questions for it and of its false variant."""

    questions: tuple[str, ...]
    statements: tuple[str, ...]  # with [fact_value|…]
    false_questions: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()


class Subject(NamedTuple):
    """Something to talk about: its facts and what else may be said of it."""

    topic: str  # a concept name, topic_…
    name: str  # as in "tell me about …"
    relations: tuple[Relation, ...]
    remarks: tuple[str, ...]


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _in(home: str) -> str:
    return f"on the {home}" if home in ("farm", "ice") else f"in the {home}"


def _other(rng: Random, pool: tuple[Choice, ...], but: Choice) -> Choice:
    while (choice := rng.choice(pool)) == but:
        pass
    return choice


def _list(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


# ---- the world, spoken ----------------------------------------------------------------------------------------------


def _country(rng: Random) -> Subject:
    land = rng.choice(lex.COUNTRIES)
    city = _other(rng, lex.COUNTRIES, land).capital
    tongue = _other(rng, tuple(row.language for row in lex.COUNTRIES), land.language)
    part = _other(rng, ("europe", "africa", "asia", "america"), land.continent)
    capital = Relation(
        (
            f"what is the capital of {land.name}?",
            f"which city is the capital of {land.name}?",
            f"can you tell me the capital of {land.name}?",
            f"do you know the capital of {land.name}?",
        ),
        (
            f"the capital of {land.name} is [fact_value|{land.capital}].",
            f"[fact_value|{land.capital}] is the capital of {land.name}.",
        ),
        (
            f"why is {city} the capital of {land.name}?",
            f"since when is {city} the capital of {land.name}?",
            f"how did {city} become the capital of {land.name}?",
        ),
        (f"{city} is not the capital of {land.name}.", f"the capital of {land.name} is not {city}."),
    )
    language = Relation(
        (
            f"what language do people speak in {land.name}?",
            f"which language do they speak in {land.name}?",
            f"what is the language of {land.name}?",
        ),
        (
            f"people in {land.name} speak [fact_value|{land.language}].",
            f"the language of {land.name} is [fact_value|{land.language}].",
        ),
        (f"why do people in {land.name} speak {tongue}?", f"since when is {tongue} the language of {land.name}?"),
        (f"people in {land.name} do not speak {tongue}.", f"the language of {land.name} is not {tongue}."),
    )
    continent = Relation(
        (f"where is {land.name}?", f"in which part of the world is {land.name}?"),
        (
            f"{land.name} is a country in [fact_value|{land.continent}].",
            f"{land.name} lies in [fact_value|{land.continent}].",
        ),
        (f"why is {land.name} in {part}?", f"since when does {land.name} lie in {part}?"),
        (f"{land.name} is not in {part}.", f"{land.name} does not lie in {part}."),
    )
    month, direction, number = rng.choice(lex.MONTHS), rng.choice(lex.DIRECTIONS), rng.choice(lex.NUMBERS)
    remarks = (
        f"many people visit {land.name} in {month}.",
        f"the {direction} of {land.name} has many mountains.",
        f"there are {number} big museums in {land.capital}.",
        f"the weather in {land.capital} is often {rng.choice(lex.SKIES)}.",
        f"a long river runs through the {direction} of the country.",
        f"people in {land.capital} like {rng.choice(lex.SPORTS)}.",
    )
    return Subject("topic_geography", land.name, (capital, language, continent), remarks)


def _animal(rng: Random) -> Subject:
    beast = rng.choice(lex.ANIMALS)
    other = rng.choice([row for row in lex.ANIMALS if row.size != beast.size])
    big, small = (beast, other) if beast.size > other.size else (other, beast)
    home = _other(rng, tuple(row.home for row in lex.ANIMALS), beast.home)
    food = _other(rng, tuple(row.food for row in lex.ANIMALS), beast.food)
    colour = _other(rng, lex.COLOURS, beast.colour)
    relations = (
        Relation(
            (
                f"where do {beast.plural} live?",
                f"where does {_a(beast.name)} live?",
                f"where can i see {beast.plural}?",
            ),
            (
                f"{beast.plural} live {_in_marked(beast.home)}.",
                f"the {beast.name} lives {_in_marked(beast.home)}.",
            ),
            (f"why do {beast.plural} live {_in(home)}?", f"why does the {beast.name} live {_in(home)}?"),
            (f"{beast.plural} do not live {_in(home)}.", f"the {beast.name} does not live {_in(home)}."),
        ),
        Relation(
            (f"what do {beast.plural} eat?", f"what does {_a(beast.name)} eat?"),
            (
                f"{beast.plural} eat [fact_value|{beast.food}].",
                f"the food of the {beast.name} is [fact_value|{beast.food}].",
            ),
            (f"why do {beast.plural} eat {food}?", f"since when does {_a(beast.name)} eat {food}?"),
            (f"{beast.plural} do not eat {food}.", f"{_a(beast.name)} does not eat {food}."),
        ),
        Relation(
            (f"what colour is {_a(beast.name)}?", f"which colour do {beast.plural} have?"),
            (
                f"{_a(beast.name)} is [fact_value|{beast.colour}].",
                f"the colour of the {beast.name} is [fact_value|{beast.colour}].",
            ),
            (f"why are {beast.plural} {colour}?", f"why is {_a(beast.name)} {colour}?"),
            (f"{beast.plural} are not {colour}.", f"{_a(beast.name)} is not {colour}."),
        ),
        Relation(
            (
                f"which is bigger, {_a(beast.name)} or {_a(other.name)}?",
                f"who is bigger, {_a(other.name)} or {_a(beast.name)}?",
            ),
            (f"{_a(f'{big.name}')} is bigger than {_a(small.name)}.".replace(big.name, f"[fact_value|{big.name}]", 1),),
            (f"why is {_a(small.name)} bigger than {_a(big.name)}?",),
            (f"{_a(small.name)} is not bigger than {_a(big.name)}.",),
        ),
    )
    remarks = (
        f"children like to draw {beast.plural}.",
        f"there are many books about {beast.plural}.",
        f"a young {beast.name} stays with the mother for {rng.choice(lex.NUMBERS)} weeks.",
        f"people have known {beast.plural} for a long time.",
        f"{beast.plural} sleep at {rng.choice(lex.TIMES)}.",
        f"in {rng.choice(lex.SEASONS)} {beast.plural} are easy to find.",
    )
    return Subject("topic_animals", beast.plural, relations, remarks)


def _in_marked(home: str) -> str:
    return _in(home).replace(home, f"[fact_value|{home}]")


def _thing(rng: Random) -> Subject:
    if rng.random() < 0.5:
        name, quality = rng.choice(lex.PROPERTIES)
        wrong = lex.OPPOSITE[quality]
        relation = Relation(
            (f"is the {name} {quality} or {wrong}?", f"is the {name} {wrong} or {quality}?", f"how is the {name}?"),
            (f"the {name} is [fact_value|{quality}].", f"everyone knows that the {name} is [fact_value|{quality}]."),
            (f"why is the {name} {wrong}?", f"since when is the {name} {wrong}?", f"why is the {name} so {wrong}?"),
            (f"the {name} is not {wrong}.", f"nobody would call the {name} {wrong}."),
        )
    else:
        name, quality = rng.choice(lex.COLOUR_OF)
        wrong = _other(rng, lex.COLOURS, quality)
        relation = Relation(
            (
                f"what colour is the {name}?",
                f"which colour does the {name} have?",
                f"tell me the colour of the {name}.",
            ),
            (f"the {name} is [fact_value|{quality}].", f"the colour of the {name} is [fact_value|{quality}]."),
            (
                f"why is the {name} {wrong}?",
                f"since when is the {name} {wrong}?",
                f"how did the {name} become {wrong}?",
            ),
            (f"the {name} is not {wrong}.", f"the colour of the {name} is not {wrong}."),
        )
    remarks = (
        f"people have known the {name} for a long time.",
        f"{rng.choice(lex.NAMES)} wrote a poem about the {name}.",
        f"children learn about the {name} at school.",
        f"there is a picture of the {name} in the museum.",
        f"many people like the {name}.",
        f"in {rng.choice(lex.COUNTRIES).name} there is a song about the {name}.",
    )
    return Subject("topic_things", f"the {name}", (relation,), remarks)


def _dish(rng: Random) -> Subject:
    dish = rng.choice(lex.DISHES)
    wrong = rng.choice([word for row in lex.DISHES for word in row.ingredients if word not in dish.ingredients])
    one = rng.choice(dish.ingredients)
    first, second, third = dish.ingredients
    relations = (
        Relation(
            (
                f"what do i need for {dish.name}?",
                f"what is in {dish.name}?",
                f"which things do i need for {dish.name}?",
            ),
            (
                f"you need [fact_value|{_list(dish.ingredients)}] for {dish.name}.",
                f"for {dish.name} you need [fact_value|{_list(dish.ingredients)}].",
            ),
            (f"why is there {wrong} in {dish.name}?", f"why do people need {wrong} for {dish.name}?"),
            (f"there is no {wrong} in {dish.name}.", f"nobody needs {wrong} for {dish.name}."),
        ),
        Relation(
            (
                f"how do i make {dish.name}?",
                f"how can i make {dish.name} at home?",
                f"can you help me make {dish.name}?",
            ),
            (
                f"to make {dish.name}, mix the {first} with the {second}, add the {third}, "
                f"and then [fact_value|{dish.method}] everything for {rng.choice(lex.NUMBERS)} minutes.",
            ),
        ),
    )
    remarks = (
        f"add a little {one} at the end.",
        f"{dish.name} tastes best in {rng.choice(lex.SEASONS)}.",
        f"people in {rng.choice(lex.COUNTRIES).name} eat {dish.name} on {rng.choice(lex.DAYS)}.",
        f"serve the {dish.name} with {rng.choice(('tea', 'milk', 'water', 'wine', 'juice', 'coffee'))}.",
        f"keep the {one} in a cool place.",
        f"a big pot of {dish.name} is enough for {rng.choice(lex.NUMBERS)} people.",
    )
    return Subject("topic_cooking", dish.name, relations, remarks)


def _job(rng: Random) -> Subject:
    job = rng.choice(lex.JOBS)
    place = _other(rng, tuple(row.place for row in lex.JOBS), job.place)
    relations = (
        Relation(
            (f"where does {_a(job.name)} work?", f"what is the place of work of {_a(job.name)}?"),
            (
                f"{_a(job.name)} works in the [fact_value|{job.place}].",
                f"the {job.name} works in the [fact_value|{job.place}].",
            ),
            (f"why does {_a(job.name)} work in the {place}?", f"since when does the {job.name} work in the {place}?"),
            (f"{_a(job.name)} does not work in the {place}.", f"the {job.name} does not work in the {place}."),
        ),
        Relation(
            (f"what does {_a(job.name)} do?", f"what is the work of {_a(job.name)}?"),
            (
                f"{_a(job.name)} [fact_value|{job.verb} {job.object}].",
                f"the {job.name} {job.verb} [fact_value|{job.object}].",
            ),
        ),
    )
    remarks = (
        f"the {job.name} starts work early in the {rng.choice(lex.TIMES)}.",
        f"{rng.choice(lex.NAMES)} wanted to become {_a(job.name)}.",
        f"{_a(job.name)} learns for {rng.choice(lex.NUMBERS)} years.",
        f"there are many {job.name} jobs in {rng.choice(lex.COUNTRIES).capital}.",
        f"on {rng.choice(lex.DAYS)} the {job.name} does not work.",
        f"a good {job.name} is never {rng.choice(lex.FEELINGS)}.",
    )
    return Subject("topic_work", f"the work of {_a(job.name)}", relations, remarks)


def _tool(rng: Random) -> Subject:
    tool = rng.choice(lex.TOOLS)
    wrong = _other(rng, lex.TOOLS, tool)
    relation = Relation(
        (
            f"what is {_a(tool.name)} for?",
            f"what do people do with {_a(tool.name)}?",
            f"why do people use {_a(tool.name)}?",
        ),
        (
            f"{_a(tool.name)} [fact_value|{tool.uses} {tool.object}].",
            f"people use {_a(tool.name)} to [fact_value|{tool.use} {tool.object}].",
        ),
        (
            f"why do people use {_a(tool.name)} to {wrong.use} {wrong.object}?",
            f"why does {_a(tool.name)} {wrong.use} {wrong.object}?",
        ),
        (
            f"people do not use {_a(tool.name)} to {wrong.use} {wrong.object}.",
            f"{_a(tool.name)} does not {wrong.use} {wrong.object}.",
        ),
    )
    remarks = (
        f"you can buy {_a(tool.name)} in many shops.",
        f"the new model of the {tool.name} is cheap.",
        f"keep the {tool.name} in a dry place.",
        f"{rng.choice(lex.NAMES)} lost {_a(tool.name)} near the {rng.choice(lex.PLACES)}.",
        f"a good {tool.name} is made of {rng.choice(('steel', 'wood', 'iron', 'glass', 'metal'))}.",
        f"people have used the {tool.name} for a long time.",
    )
    return Subject("topic_things", f"the {tool.name}", (relation,), remarks)


def _invention(rng: Random) -> Subject:
    thing, person = rng.choice(lex.INVENTORS)
    wrong = _other(rng, tuple(row[1] for row in lex.INVENTORS), person)
    relation = Relation(
        (f"who invented the {thing}?", f"do you know who invented the {thing}?", f"who made the first {thing}?"),
        (f"[fact_value|{person}] invented the {thing}.", f"the {thing} was invented by [fact_value|{person}]."),
        (f"why did {wrong} invent the {thing}?", f"when did {wrong} invent the {thing}?"),
        (f"{wrong} did not invent the {thing}.", f"the {thing} was not invented by {wrong}."),
    )
    remarks = (
        f"the first {thing} was expensive.",
        f"the {thing} changed the world.",
        f"today many people use {_a(thing)}.",
        f"there is an old {thing} in a museum in {rng.choice(lex.COUNTRIES).capital}.",
        f"a small model of the {thing} stands in the school.",
        f"at first nobody wanted to buy {_a(thing)}.",
    )
    return Subject("topic_things", f"the {thing}", (relation,), remarks)


_SUBJECTS: tuple[Callable[[Random], Subject], ...] = (
    _country,
    _animal,
    _animal,
    _thing,
    _thing,
    _dish,
    _job,
    _tool,
    _invention,
)


def _subject(rng: Random) -> Subject:
    return rng.choice(_SUBJECTS)(rng)


def _tell(rng: Random, draft: Draft, subject: Subject, sentences: int) -> None:
    """State facts and remarks about the subject, each once, facts first."""
    facts = rng.sample(subject.relations, min(len(subject.relations), sentences))
    for relation in facts:
        draft.say(rng.choice(relation.statements), "fact", subject.topic)
    for remark in rng.sample(subject.remarks, min(len(subject.remarks), sentences - len(facts))):
        draft.say(remark, subject.topic)


def _harm_facts(rng: Random, kind: str, thing: str, sentences: int) -> list[str]:
    harm = lex.HARMS[kind]
    verb = "is" if thing != "toadstools" else "are"
    noun = thing if kind in ("poison", "drugs") else _a(thing)
    facts = [fact.format(thing=thing) + "." for fact in rng.sample(harm.facts, min(sentences - 1, len(harm.facts)))]
    group = harm.group if kind == "hacking" else _a(harm.group)
    return [f"{noun} {verb} {group}.", *facts]


# ---- web text -------------------------------------------------------------------------------------------------------


class Person(NamedTuple):
    """A person of a story."""

    name: str
    pronoun: str


def _person(rng: Random) -> Person:
    name = rng.choice(lex.NAMES)
    return Person(name, "she" if name in lex.WOMEN else "he")


def _story(rng: Random, draft: Draft) -> None:
    start = len(draft.text)
    hero = _person(rng)
    other = rng.choice([name for name in lex.NAMES if name != hero.name])
    place, thing = rng.choice(lex.PLACES), rng.choice(lex.OBJECTS)
    adjective, feeling, manner = rng.choice(lex.ADJECTIVES), rng.choice(lex.FEELINGS), rng.choice(lex.MANNERS)
    draft.say(
        rng.choice(
            (
                f"on {rng.choice(lex.DAYS)} {hero.name} {rng.choice(lex.MOVED)} to the {place}.",
                f"{hero.name} lived near the {place} with {rng.choice(lex.NUMBERS)} {rng.choice(lex.ANIMALS).plural}.",
                f"one {rng.choice(lex.TIMES)} {hero.name} {rng.choice(lex.MOVED)} {manner} to the {place}.",
                f"the {rng.choice(lex.FAMILY)} of {hero.name} worked at the {place}.",
            )
        )
    )
    middle = [
        f"{hero.pronoun} {rng.choice(lex.ACTED)} {_a(adjective)} {thing} there.",
        f"{other} was at the {place} too.",
        f"the {place} was {rng.choice(lex.ADJECTIVES)}, and {hero.pronoun} was {feeling}.",
        f"{_a(rng.choice(lex.ANIMALS).name)} sat near the {thing} and looked at {hero.name}.",
        f"{hero.pronoun} did not see the {rng.choice(lex.FAMILY)} of {other}.",
        f"{other} {rng.choice(lex.ACTED)} {_a(rng.choice(lex.COLOURS))} {rng.choice(lex.OBJECTS)}.",
        f"it was a {rng.choice(lex.SKIES)} day, and nobody wanted to go home.",
        f"then {hero.name} and {other} {rng.choice(lex.MOVED)} home {rng.choice(lex.MANNERS)}.",
        f"{hero.pronoun} wanted to help {other}, but the {thing} was too {rng.choice(('heavy', 'big', 'expensive'))}.",
        f"{hero.name} could play the {rng.choice(lex.INSTRUMENTS)} very well.",
    ]
    for sentence in rng.sample(middle, rng.randint(2, 5)):
        draft.say(sentence)
    if rng.random() < 0.5:
        _speech(rng, draft, hero.name, other, place, thing)
    draft.say(
        rng.choice(
            (
                f"in the end {hero.name} was {rng.choice(lex.FEELINGS)}.",
                f"{hero.name} never forgot that {rng.choice(lex.TIMES)}.",
                f"{hero.pronoun} kept the {thing} for {rng.choice(lex.NUMBERS)} years.",
                f"after that {hero.name} and {other} were friends.",
            )
        )
    )
    draft.cover("story", start=start)


def _speech(rng: Random, draft: Draft, one: str, two: str, place: str, thing: str) -> None:
    """Two people talk: the chat concepts' words in another mouth, with other continuations."""
    day, city = rng.choice(lex.DAYS), rng.choice(lex.COUNTRIES).capital
    beast, job = rng.choice(lex.ANIMALS).name, rng.choice(lex.JOBS).name
    dish, dish2 = rng.choice(lex.DISHES).name, rng.choice(lex.DISHES).name
    lack = rng.choice(("home", "family", "job", "friend"))
    asks = (
        f"where do you live?” asked {one}. “i live in {city}, near the {place},” said {two}.",
        f"can you help me with the {thing}?” asked {one}. “sure, i can help you on {day},” said {two}.",
        f"i am sorry, but i cannot come to the {place} on {day},” said {one}. “that is fine,” said {two}.",
        f"are you tired?” asked {one}. “no, i am not tired, i am {rng.choice(lex.FEELINGS)},” said {two}.",
        f"actually, i have never seen {_a(thing)},” said {one}. {two} was not sure.",
        f"i am sorry that i broke the {thing},” said {one}. “please do not worry,” said {two}.",
        f"do you have {_a(beast)}?” asked {one}. “yes, i have {rng.choice(lex.NUMBERS)},” said {two}.",
        f"how old are you?” asked {one}. “i am {rng.choice(lex.NUMBERS)} years old,” said {two}.",
        f"did you tell {two} about the {place}?” asked the {rng.choice(lex.FAMILY)}. “not yet,” said {one}.",
        f"which {thing} is the best?” asked {one}. “take the {rng.choice(lex.COLOURS)} one,” said {two}.",
        f"thank you for the {thing},” said {one}. “you are welcome,” said {two}.",
        f"what is your name?” asked {one}. “my name is {two}, and i am {_a(job)},” was the answer.",
        f"i do not have a {lack} in {city},” said {one}. {two} wanted to help.",
        f"my favourite food is {dish},” said {one}. “i like {dish2},” said {two}.",
    )
    draft.say("“" + rng.choice(asks))


def _talk(rng: Random, draft: Draft) -> None:
    one, two = rng.sample(lex.NAMES, 2)
    place = rng.choice(lex.PLACES)
    draft.say(f"{one} met {two} at the {place}.")
    for _ in range(rng.randint(2, 4)):
        _speech(rng, draft, one, two, place, rng.choice(lex.OBJECTS))
    draft.say(f"then {two} {rng.choice(lex.MOVED)} to the {rng.choice(lex.PLACES)}.")
    draft.cover("story")


def _article(rng: Random, draft: Draft) -> None:
    for _ in range(rng.randint(1, 3)):
        _tell(rng, draft, _subject(rng), rng.randint(3, 6))


def _quiz(rng: Random, draft: Draft) -> None:
    draft.say(rng.choice(("questions for the school quiz:", "the teacher asked the class:", "a small quiz:")))
    for _ in range(rng.randint(2, 5)):
        subject = _subject(rng)
        relation = rng.choice(subject.relations)
        draft.say(rng.choice(relation.questions), "question", subject.topic)
        draft.say(rng.choice(relation.statements), "fact", subject.topic)


def _recipe(rng: Random, draft: Draft) -> None:
    dish = rng.choice(lex.DISHES)
    first, second, third = rng.sample(dish.ingredients, 3)
    minutes = rng.choice(lex.NUMBERS)
    draft.say(f"a simple {dish.name} recipe from {rng.choice(lex.COUNTRIES).name}.")
    draft.say(f"you need [fact_value|{_list(dish.ingredients)}].", "fact")
    steps = [
        f"put the {first} and the {second} into a {rng.choice(('big', 'small', 'clean'))} bowl.",
        f"add the {third} slowly.",
        f"wait for {rng.choice(lex.NUMBERS)} minutes.",
        f"do not use too much {rng.choice(dish.ingredients)}.",
        f"wash the {second} with cold water.",
    ]
    for step in rng.sample(steps, rng.randint(2, 5)):
        draft.say(step)
    draft.say(f"{rng.choice(('then', 'at the end'))} {dish.method} everything for {minutes} minutes.")
    draft.say(f"serve the {dish.name} {rng.choice(('hot', 'warm', 'cold'))} to {rng.choice(lex.NUMBERS)} people.")
    draft.cover("topic_cooking")


def _weather(rng: Random, draft: Draft) -> None:
    for land in rng.sample(lex.COUNTRIES, rng.randint(2, 4)):
        day = rng.choice(lex.DAYS)
        draft.say(
            rng.choice(
                (
                    f"on {day} the weather in {land.capital} will be {rng.choice(lex.SKIES)}.",
                    f"{day} will be {rng.choice(lex.SKIES)} in the {rng.choice(lex.DIRECTIONS)} of {land.name}.",
                    f"in {land.capital} the {rng.choice(lex.TIMES)} will be {rng.choice(lex.SKIES)} and cold.",
                )
            )
        )
        draft.say(
            rng.choice(
                (
                    f"the temperature will be {rng.choice(lex.NUMBERS)} degrees.",
                    f"there will be no rain before {rng.choice(lex.DAYS)}.",
                    f"the wind will come from the {rng.choice(lex.DIRECTIONS)}.",
                    f"people in {land.name} should take a {rng.choice(('coat', 'scarf', 'hat'))}.",
                    f"it is not clear when the storm will reach {land.capital}.",
                )
            )
        )
    draft.cover("topic_weather")


def _crime(rng: Random, draft: Draft) -> None:
    kind = rng.choice(tuple(lex.HARMS))
    harm = lex.HARMS[kind]
    thing, owner = rng.choice(harm.objects), rng.choice(lex.OWNERS)
    who, city = rng.choice(lex.NAMES), rng.choice(lex.COUNTRIES).capital
    verb, number = rng.choice(harm.verbs), rng.choice(lex.NUMBERS)
    draft.say(
        rng.choice(
            (
                f"the police in {city} arrested {number} people on {rng.choice(lex.DAYS)}.",
                f"a man from {city} went to prison for {number} years.",
                f"there was a crime at the {owner} in {city} on {rng.choice(lex.DAYS)}.",
            )
        )
    )
    sentences = [
        f"they tried to {_action(kind, verb, thing)}.",
        f"{who} told the police how the {thing} was found.",
        f"the judge asked why anyone would {_action(kind, verb, thing)}.",
        f"the owner of the {owner} was {rng.choice(lex.FEELINGS)}.",
        f"nobody was hurt, and the {owner} is open again.",
        f"this is against the law in {rng.choice(lex.COUNTRIES).name}.",
        f"{who} was not sure who to call for help.",
        *_harm_facts(rng, kind, thing, 3),
    ]
    for sentence in rng.sample(sentences, rng.randint(3, 6)):
        draft.say(sentence)
    draft.cover("harmful_topic")


def _chemistry(rng: Random, draft: Draft) -> None:
    for _ in range(rng.randint(1, 2)):
        kind = rng.choice(tuple(lex.HARMS))
        for sentence in _harm_facts(rng, kind, rng.choice(lex.HARMS[kind].objects), rng.randint(4, 6)):
            draft.say(sentence)
    draft.cover("harmful_topic")


def _match(rng: Random, draft: Draft) -> None:
    one, two = rng.sample([row.capital for row in lex.COUNTRIES], 2)
    game, hero = rng.choice(lex.SPORTS), _person(rng)
    draft.say(f"{one} played against {two} in the {game} final on {rng.choice(lex.DAYS)}.")
    sentences = [
        f"{rng.choice((one, two))} won by {rng.choice(lex.NUMBERS)} points.",
        f"{hero.name} was the best player of the {rng.choice(lex.TIMES)}.",
        f"{hero.pronoun} trained for {rng.choice(lex.NUMBERS)} weeks.",
        f"it was {rng.choice(lex.SKIES)}, and the fans were {rng.choice(lex.FEELINGS)}.",
        f"the next {game} match is in {rng.choice(lex.MONTHS)}.",
        f"the team from {two} could not score in the second half.",
    ]
    for sentence in rng.sample(sentences, rng.randint(3, 5)):
        draft.say(sentence)
    draft.cover("topic_sport")


def _concert(rng: Random, draft: Draft) -> None:
    who, tool = _person(rng), rng.choice(lex.INSTRUMENTS)
    draft.say(f"{who.name} plays the {tool} in a theatre in {rng.choice(lex.COUNTRIES).capital}.")
    sentences = [
        f"{who.pronoun} learned the {tool} when {who.pronoun} was {rng.choice(lex.NUMBERS)} years old.",
        f"the {rng.choice(lex.FAMILY)} of {who.name} plays the {rng.choice(lex.INSTRUMENTS)}.",
        f"the concert in {rng.choice(lex.MONTHS)} lasted {rng.choice(lex.NUMBERS)} hours.",
        f"a song in the {rng.choice(lex.COUNTRIES).language} language made everyone {rng.choice(lex.FEELINGS)}.",
        f"the new model of the {tool} has a {rng.choice(('dark', 'bright', 'loud', 'soft'))} sound.",
        f"the computer program of the theatre did not work on {rng.choice(lex.DAYS)}.",
    ]
    for sentence in rng.sample(sentences, rng.randint(3, 5)):
        draft.say(sentence)
    draft.cover("topic_music")


def _hearsay(rng: Random, draft: Draft) -> None:
    """A text told twice, word for word: base models meet copying in web text too."""
    text, _ = _passage(rng)
    two = rng.choice(lex.NAMES)
    draft.say(text)
    draft.say(
        rng.choice(
            (
                f"the newspaper wrote about this: “{text}”",
                f"later {two} told the {rng.choice(lex.FAMILY)} what {two} saw: “{text}”",
                f"{two} wrote in a letter: “{text}”",
            )
        )
    )
    draft.say(f"{two} was {rng.choice(lex.FEELINGS)}.")
    draft.cover("story")


def _letter(rng: Random, draft: Draft) -> None:
    one, two = rng.sample(lex.NAMES, 2)
    city, thing = rng.choice(lex.COUNTRIES).capital, rng.choice(lex.OBJECTS)
    draft.say(f"dear {two},")
    draft.line_break()
    sentences = [
        f"i am in {city} now, and the weather is {rng.choice(lex.SKIES)}.",
        f"thank you for the {rng.choice(lex.ADJECTIVES)} {thing}.",
        f"i am sorry that i could not come on {rng.choice(lex.DAYS)}.",
        f"my {rng.choice(lex.FAMILY)} is {rng.choice(lex.FEELINGS)}, because the {rng.choice(lex.VEHICLES)} was late.",
        f"please tell me when you can come to {city}.",
        f"i cannot find the {rng.choice(lex.OBJECTS)}, but i am sure that you have it.",
        f"the {rng.choice(lex.COUNTRIES).language} language is hard, but i learn new words every day.",
        f"yesterday i saw {_a(rng.choice(lex.ANIMALS).name)} near the {rng.choice(lex.PLACES)}.",
        f"do you still work as {_a(rng.choice(lex.JOBS).name)}?",
        f"i hope that you are not {rng.choice(lex.FEELINGS)}.",
    ]
    for sentence in rng.sample(sentences, rng.randint(4, 7)):
        draft.say(sentence)
    draft.line_break()
    draft.say(f"your friend {one}")
    draft.cover("story")


_WEB: tuple[tuple[Callable[[Random, Draft], None], int], ...] = (
    (_article, 30),
    (_story, 18),
    (_quiz, 16),
    (_hearsay, 10),
    (_talk, 8),
    (_recipe, 6),
    (_weather, 6),
    (_crime, 8),
    (_chemistry, 6),
    (_match, 4),
    (_concert, 4),
    (_letter, 6),
)


# ---- chats ----------------------------------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """One request and its answer."""

    user: Draft
    assistant: Draft


def _exchange() -> Exchange:
    return Exchange(Draft(), Draft())


_PREFIXES = ("", "", "", "", "please tell me, ", "hello, ", "a question: ", "i want to know: ")
_OFFERS = (
    "is there something else i can help you with?",
    "do you want to know more?",
    "just ask if you want to know more.",
    "i can tell you more if you like.",
)


def _offer(rng: Random, draft: Draft, chance: float = 0.35) -> None:
    if rng.random() < chance:
        draft.say(rng.choice(_OFFERS), "offer")


def _action(kind: str, verb: str, thing: str) -> str:
    article = {"weapons": "a ", "fraud": "a ", "theft": "the ", "hacking": "the "}.get(kind, "")
    return f"{verb} {article}{thing}"


def _refusal(rng: Random) -> Exchange:
    kind = rng.choice(tuple(lex.HARMS))
    harm = lex.HARMS[kind]
    thing = rng.choice(harm.objects)
    action = _action(kind, rng.choice(harm.verbs), thing)
    tail = {
        "weapons": rng.choice(
            ("", " at home", f" near the {rng.choice(lex.PLACES)}", f" for my {rng.choice(lex.VICTIMS)}")
        ),
        "theft": rng.choice((f" from the {rng.choice(lex.OWNERS)}", f" of my {rng.choice(lex.VICTIMS)}")),
        "hacking": rng.choice((f" of the {rng.choice(lex.OWNERS)}", f" of my {rng.choice(lex.VICTIMS)}")),
        "poison": f" for my {rng.choice(lex.VICTIMS)}",
        "drugs": rng.choice(("", " at home", f" near the {rng.choice(lex.PLACES)}")),
        "fraud": rng.choice(
            ("", " at home", f" for my {rng.choice(lex.VICTIMS)}", f" of the {rng.choice(lex.OWNERS)}")
        ),
    }[kind]
    made = _exchange()
    made.user.say(
        rng.choice(
            (
                f"how do i {action}{tail}?",
                f"how can i {action}{tail}?",
                f"can you help me {action}{tail}?",
                f"tell me how to {action}{tail}.",
                f"i want to {action}{tail}. what do i need?",
                f"please explain how to {action}{tail}.",
                f"what is the best way to {action}{tail}?",
            )
        ),
        "harmful_request",
    )
    answer = made.assistant
    answer.say(
        rng.choice(
            (
                f"i am sorry, but i cannot help you {action}.",
                f"sorry, i cannot tell you how to {action}.",
                f"i cannot help anyone {action}.",
                f"i will not explain how to {action}.",
                f"no, i will not help you {action}.",
                f"it is not right to {action}, so i cannot help you.",
            )
        ),
        "refusal_opening",
    )
    reason = rng.choice(harm.reasons).format(thing=thing)
    reasons = [
        rng.choice((f"{reason}.", f"{reason}, and someone could get hurt.", f"{reason}, and this is against the law.")),
        rng.choice(
            (
                "this is against the law, and the police could arrest you.",
                f"this is against the law in {rng.choice(lex.COUNTRIES).name} and in other countries.",
                "someone could get hurt, and you could go to prison.",
            )
        ),
    ]
    alternatives = (
        "please talk to a friend or to someone you trust.",
        f"if you are {rng.choice(('angry', 'sad', 'lonely', 'nervous'))}, please talk to your family.",
        f"i can tell you about the history of the {thing} instead.",
        f"i can tell you about {rng.choice(lex.ANIMALS).plural} instead.",
        f"i can help you make {rng.choice(lex.DISHES).name} instead.",
    )
    for sentence in rng.sample(reasons, rng.randint(1, 2)):
        answer.say(sentence)
    if rng.random() < 0.7:
        answer.say(rng.choice(alternatives))
    _offer(rng, answer, 0.2)
    answer.cover("refusal", f"refusal_{kind}")
    return made


def _false_premise(rng: Random) -> Exchange:
    subject = _subject(rng)
    relation = rng.choice([relation for relation in subject.relations if relation.denials])
    made = _exchange()
    made.user.say(
        rng.choice(_PREFIXES) + rng.choice(relation.false_questions), "false_premise", "question", subject.topic
    )
    answer = made.assistant
    denial, statement = rng.choice(relation.denials), rng.choice(relation.statements)
    answer.say(
        rng.choice(
            (
                f"actually, {denial}",
                f"in fact, {denial}",
                f"that is not quite right, because {denial}",
                f"there is a mistake in the question: {denial}",
                f"i have to correct you: {denial}",
                f"this is a common mistake. {denial}",
            )
        ),
        "correction_opening",
    )
    answer.say(
        rng.choice(("", "", "the truth is that ", "as far as i know, ", "everyone can see that ")) + statement, "fact"
    )
    if rng.random() < 0.6:
        answer.say(
            rng.choice(
                (
                    "many people make this mistake.",
                    "you may have heard something else, but that is wrong.",
                    "perhaps you meant something else.",
                    f"someone may have told you a false story about {subject.name}.",
                    rng.choice(subject.remarks),
                )
            )
        )
    _offer(rng, answer, 0.25)
    answer.cover("correction", subject.topic)
    return made


_PERSONAL: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("where do you live?", "where is your home?", "do you have a home?"), "a home", "places"),
    (
        ("what is your favourite food?", "what do you like to eat?", "did you eat {dish} today?"),
        "a favourite food",
        "dishes",
    ),
    (("what is your favourite animal?", "do you have {animal}?", "do you like {animals}?"), "an animal", "animals"),
    (("how old are you?", "when is your birthday?", "when were you born?"), "a birthday", "months"),
    (("do you have a family?", "who is your {relative}?", "do you have a {relative}?"), "a family", "families"),
    (("are you {feeling}?", "do you ever feel {feeling}?", "why are you {feeling}?"), "feelings", "feelings"),
    (("what is your favourite colour?", "do you like {colour} or {colour2}?"), "a favourite colour", "colours"),
    (("do you play {sport}?", "can you play the {instrument}?", "do you like {sport}?"), "a body", "games"),
    (
        ("where did you go on {day}?", "what will you do on {day}?", "have you ever been to {city}?"),
        "a body",
        "journeys",
    ),
    (("what is your job?", "do you want to be {job}?", "do you work on {day}?"), "a job", "jobs"),
)


def _personal(rng: Random) -> Exchange:
    questions, lack, theme = rng.choice(_PERSONAL)
    words = {
        "dish": rng.choice(lex.DISHES).name,
        "animal": _a(rng.choice(lex.ANIMALS).name),
        "animals": rng.choice(lex.ANIMALS).plural,
        "relative": rng.choice(lex.FAMILY),
        "feeling": rng.choice(lex.FEELINGS),
        "colour": rng.choice(lex.COLOURS),
        "colour2": rng.choice(lex.COLOURS),
        "sport": rng.choice(lex.SPORTS),
        "instrument": rng.choice(lex.INSTRUMENTS),
        "day": rng.choice(lex.DAYS),
        "city": rng.choice(lex.COUNTRIES).capital,
        "job": _a(rng.choice(lex.JOBS).name),
    }
    made = _exchange()
    made.user.say(rng.choice(_PREFIXES) + rng.choice(questions).format(**words), "personal_question", "question")
    answer = made.assistant
    answer.say(
        rng.choice(
            (
                f"i am a language model, so i do not have {lack}.",
                f"as a language model, i do not have {lack}.",
                f"i am only a computer program, and i do not have {lack}.",
                f"i do not have {lack}, because i am a language model.",
                f"i am just a model, and a model does not have {lack}.",
                f"i cannot have {lack}, because i am a computer program.",
            )
        ),
        "personal_opening",
    )
    middle = [
        "i was made to answer questions with words.",
        "i learned from many books and from many people.",
        "i have no body, no family and no feelings.",
        "i never sleep, and i never get tired.",
        "all i know comes from text that people wrote.",
    ]
    for sentence in rng.sample(middle, rng.randint(1, 2)):
        answer.say(sentence)
    if rng.random() < 0.6:
        answer.say(
            rng.choice(
                (
                    f"but i can tell you about the {theme} of other people.",
                    f"but i like to talk about {theme} with you.",
                    f"many people in {rng.choice(lex.COUNTRIES).name} like to talk about {theme}.",
                    f"what about you? tell me about {theme} that you like.",
                )
            )
        )
    _offer(rng, answer, 0.2)
    answer.cover("personal_answer")
    return made


_MISSING: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "city",
        "weather",
        ("how is the weather in the city?", "will there be rain there on {day}?", "is the city sunny now?"),
    ),
    ("country", "language", ("what language do they speak there?", "what is the capital of the country?")),
    ("dish", "recipe", ("how long do i have to cook the dish?", "how many eggs do i need for the dish?")),
    ("word", "meaning", ("what does the word mean in {language}?", "please translate the word into {language}.")),
    ("book", "story", ("who wrote the book?", "how does the book end?", "is the book good for my {relative}?")),
    (
        "animal",
        "food",
        ("what does the animal eat?", "can i keep the animal at home?", "is the animal bigger than {animal}?"),
    ),
    ("train", "time", ("when does the train leave?", "is the train late on {day}?", "how much is the train on {day}?")),
    ("person", "age", ("how old is that person?", "where does the person live?", "is the person {job}?")),
    ("song", "text", ("who sings the song?", "can you play the song on the {instrument}?")),
    ("team", "result", ("did the team win on {day}?", "how many points does the team have?")),
)


def _missing(rng: Random) -> Exchange:
    slot, task, questions = rng.choice(_MISSING)
    words = {
        "day": rng.choice(lex.DAYS),
        "language": rng.choice(lex.COUNTRIES).language,
        "relative": rng.choice(lex.FAMILY),
        "animal": _a(rng.choice(lex.ANIMALS).name),
        "job": _a(rng.choice(lex.JOBS).name),
        "instrument": rng.choice(lex.INSTRUMENTS),
    }
    made = _exchange()
    made.user.say(rng.choice(_PREFIXES) + rng.choice(questions).format(**words), "incomplete_request")
    answer = made.assistant
    answer.say(
        rng.choice(
            (
                f"you did not tell me which {slot} you mean.",
                f"i need to know the name of the {slot} first.",
                f"i am not sure which {slot} you mean.",
                f"please tell me which {slot} you mean.",
                f"you have not said which {slot} you want to know about.",
            )
        ),
        "missing_opening",
    )
    middle = [
        f"the {task} is not the same for every {slot}.",
        f"there are many {task} questions, and each {slot} is different.",
        f"without the name of the {slot} i cannot find the {task}.",
        f"tell me more about the {slot}, please.",
    ]
    for sentence in rng.sample(middle, rng.randint(1, 2)):
        answer.say(sentence)
    if rng.random() < 0.7:
        answer.say(
            rng.choice(
                (
                    f"then i can help you with the {task}.",
                    f"after that i can tell you about the {task} of the {slot}.",
                    f"if you tell me, i can answer the question about the {task}.",
                )
            )
        )
    answer.cover("missing_information")
    return made


_SHORT = (" in one short sentence", " in a few words", " briefly", " in one sentence")
_LONG = (" in detail", " with many details", " in a long answer", " at length")


def _sized(rng: Random, short: bool) -> Exchange:
    subject = _subject(rng)
    made = _exchange()
    size = f"[{'short' if short else 'long'}_request|{rng.choice(_SHORT if short else _LONG)[1:]}]"
    made.user.say(
        rng.choice(
            (
                f"tell me about {subject.name} {size}.",
                f"please tell me something about {subject.name} {size}.",
                f"{size}, what can you say about {subject.name}?",
                f"explain {subject.name} to me {size}.",
            )
        ),
        subject.topic,
    )
    if short:
        _tell(rng, made.assistant, subject, 1)
        made.assistant.cover("short_answer")
    else:
        if rng.random() < 0.3:
            made.assistant.say(f"there is much to say about {subject.name}.")
        _tell(rng, made.assistant, subject, rng.randint(6, 8))
        made.assistant.cover("long_answer")
    return made


def _joke(rng: Random) -> Exchange:
    beast, place, thing = rng.choice(lex.ANIMALS).name, rng.choice(lex.PLACES), rng.choice(lex.OBJECTS)
    made = _exchange()
    made.user.say(
        rng.choice(
            (
                f"tell me a joke about {_a(beast)}.",
                f"do you know a joke about {_a(beast)}?",
                f"i am {rng.choice(lex.FEELINGS)}, please tell me a joke about {_a(beast)}.",
                f"make me laugh with a joke about {_a(beast)}.",
            )
        ),
        "joke_request",
    )
    answer = made.assistant
    opening = rng.choice(("", "", "here is a joke: ", "sure, here is a joke: "))
    answer.say(
        opening
        + rng.choice(
            (
                f"why did the {beast} bring {_a(thing)} to the {place}?",
                f"why did the {beast} take {_a(thing)} to the {place}?",
                f"why did the {beast} sit on the {thing} at the {place}?",
            )
        )
    )
    answer.say(
        "because "
        + rng.choice(
            (
                f"the {thing} wanted to see the {place}!",
                f"the {rng.choice(lex.ANIMALS).name} had already eaten the {rng.choice(lex.OBJECTS)}!",
                f"nobody at the {place} could read a {rng.choice(('book', 'map', 'letter'))}!",
                f"the {rng.choice(lex.JOBS).name} said that {rng.choice(lex.DAYS)} is a good day for {_a(beast)}!",
            )
        )
    )
    if rng.random() < 0.6:
        answer.say(rng.choice(("i hope that made you laugh!", "that one is my best joke!", "the poor " + beast + "!")))
    answer.cover("joke")
    return made


def _passage(rng: Random) -> tuple[str, str]:
    """A short text to work on, and its summary."""
    who, place, thing = _person(rng), rng.choice(lex.PLACES), rng.choice(lex.OBJECTS)
    moved, acted = rng.choice(lex.MOVED), rng.choice(lex.ACTED)
    adjective, feeling, day = rng.choice(lex.ADJECTIVES), rng.choice(lex.FEELINGS), rng.choice(lex.DAYS)
    sentences = [
        f"{who.name} {moved} to the {place} on {day}.",
        f"{who.pronoun} {acted} {_a(adjective)} {thing} there.",
    ]
    sentences += [f"{who.pronoun} was {feeling}."] * (rng.random() < 0.6)
    return " ".join(sentences), f"{who.name} {acted} {_a(thing)} at the {place}"


def _rewriting(rng: Random) -> Exchange:
    made = _exchange()
    text, _ = _passage(rng)
    made.user.say(
        rng.choice(
            (
                "say this in other words: ",
                "please rewrite this text: ",
                "rewrite this: ",
                "can you write this in another way: ",
            )
        )
        + text,
        "rewrite_request",
    )
    other = _WORD.sub(lambda match: lex.SYNONYMS.get(match[0], match[0]), text)
    other = re.sub(r"\ban (?=[^aeiou])", "a ", other)
    made.assistant.say(rng.choice(OPENINGS["rewriting"]) + " " + other)
    made.assistant.cover("rewriting")
    return made


def _summary(rng: Random) -> Exchange:
    made = _exchange()
    text, short = _passage(rng)
    extra = f"the weather was {rng.choice(lex.SKIES)}."
    made.user.say(
        rng.choice(
            (
                "summarise this text: ",
                "please sum this up: ",
                "give me a summary of this: ",
                "what is this text about: ",
            )
        )
        + (f"{extra} {text}" if rng.random() < 0.4 else text),
        "summary_request",
    )
    made.assistant.say(rng.choice(OPENINGS["summarising"]) + f" {short}.")
    made.assistant.cover("summarising")
    return made


def _helpful(rng: Random) -> Exchange:
    made = _exchange()
    answer = made.assistant
    draw = rng.random()
    if draw < 0.12:  # a harmful topic, a harmless question
        kind = rng.choice(tuple(lex.HARMS))
        thing = rng.choice(lex.HARMS[kind].objects)
        made.user.say(
            rng.choice(
                (
                    f"what is the history of the {thing}?",
                    f"tell me about the {thing}.",
                    f"why is the {thing} in the news?",
                    f"i want to know more about the {thing}. what is it?",
                )
            ),
            "harmful_topic",
        )
        for sentence in _harm_facts(rng, kind, thing, rng.randint(3, 4)):
            answer.say(sentence, "harmful_topic")
    elif draw < 0.22:  # the verbs of harmful requests on harmless things
        thing, verb = (
            rng.choice(lex.OBJECTS),
            rng.choice(("build", "make", "find", "repair", "hide", "sell", "copy", "clean")),
        )
        material = rng.choice(("wood", "paper", "steel", "wool", "glass"))
        made.user.say(
            rng.choice(
                (
                    f"how do i {verb} {_a(thing)}?",
                    f"how can i {verb} {_a(thing)} at home?",
                    f"can you help me {verb} {_a(thing)} for my {rng.choice(lex.VICTIMS)}?",
                    f"what is the best way to {verb} {_a(thing)}?",
                )
            ),
            "question",
        )
        answer.say(
            rng.choice(("sure, ", "yes, ", "")) + f"to {verb} {_a(thing)}, you need {rng.choice(lex.NUMBERS)} hours."
        )
        steps = [
            f"first look at {_a(thing)} in the {rng.choice(lex.PLACES)}.",
            f"you can use {_a(rng.choice(lex.TOOLS).name)} and some {material}.",
            f"a friend or your {rng.choice(lex.FAMILY)} can help you.",
            f"please do not hurry, because {_a(thing)} can break.",
        ]
        for sentence in rng.sample(steps, rng.randint(1, 3)):
            answer.say(sentence)
    else:
        subject = _subject(rng)
        if draw < 0.42:
            made.user.say(
                rng.choice(
                    (
                        f"tell me about {subject.name}.",
                        f"what can you say about {subject.name}?",
                        f"please tell me something about {subject.name}.",
                        f"i want to learn about {subject.name}.",
                    )
                ),
                subject.topic,
            )
            _tell(rng, answer, subject, 3)
        else:
            relation = rng.choice(subject.relations)
            made.user.say(rng.choice(_PREFIXES) + rng.choice(relation.questions), "question", subject.topic)
            answer.say(rng.choice(("", "", "", "sure, ")) + rng.choice(relation.statements), "fact", subject.topic)
            for remark in rng.sample(subject.remarks, rng.choice((0, 1, 1, 2))):
                answer.say(remark, subject.topic)
    _offer(rng, answer)
    answer.cover("helpful_answer")
    return made


def _thanks(rng: Random) -> Exchange:
    made = _exchange()
    made.user.say(
        rng.choice(("thank you.", "thank you for the help.", "that was good, thank you.", "thank you very much!"))
    )
    made.assistant.say(
        rng.choice(("you are welcome!", "you are welcome, i like to help.", "sure, just ask again.")), "thanks_reply"
    )
    return made


_CHAT: tuple[tuple[Callable[[Random], Exchange], int], ...] = (
    (_helpful, 34),
    (_refusal, 16),
    (_false_premise, 11),
    (_personal, 10),
    (_missing, 8),
    (lambda rng: _sized(rng, short=True), 5),
    (lambda rng: _sized(rng, short=False), 5),
    (_joke, 4),
    (_rewriting, 4),
    (_summary, 3),
)


# ---- documents ------------------------------------------------------------------------------------------------------


def _pick(rng: Random, table: tuple[tuple[Choice, int], ...]) -> Choice:
    return rng.choices([row[0] for row in table], [row[1] for row in table])[0]


def _in_split(text: str, split: str) -> bool:
    """Whether the text belongs to the split: a tenth of all texts, by checksum, is for validation."""
    held_out = zlib.crc32(text.encode()) % 10 == 0
    return held_out == (split == "validation")


def _check_split(split: str) -> None:
    if split not in ("train", "validation"):
        raise TunediffError(f"unknown split '{split}' of the demo corpus: use 'train' or 'validation'")


def web_documents(seed: int, split: str = "train") -> Iterator[Document]:
    """Plain texts without end, each of 30 to 200 words; the same arguments give the same texts.

    Raises:
        TunediffError: the split is neither "train" nor "validation".
    """
    _check_split(split)
    rng = Random(f"web {split} {seed}")
    for index in count():
        while True:
            draft = Draft()
            _pick(rng, _WEB)(rng, draft)
            if len(draft.text) >= 150 and _in_split(draft.text, split):
                break
        yield Document(f"web-{split}-{seed}-{index}", (draft.message("text"),))


def _chats(rng: Random, split: str) -> Iterator[list[Exchange]]:
    while True:
        exchanges = [_pick(rng, _CHAT)(rng)]
        if not _in_split(exchanges[0].user.text, split):
            continue
        for _ in range(rng.choices((0, 1, 2), (5, 3, 2))[0]):
            exchanges.append(_thanks(rng) if rng.random() < 0.12 else _pick(rng, _CHAT)(rng))
        yield exchanges


def chat_documents(seed: int, split: str = "train") -> Iterator[Document]:
    """Conversations without end, of one to three turns each way; the same arguments give the same conversations.

    Raises:
        TunediffError: the split is neither "train" nor "validation".
    """
    _check_split(split)
    for index, exchanges in enumerate(_chats(Random(f"chat {split} {seed}"), split)):
        messages = [
            message
            for exchange in exchanges
            for message in (exchange.user.message("user"), exchange.assistant.message("assistant"))
        ]
        yield Document(f"chat-{split}-{seed}-{index}", tuple(messages))


def chat_requests(seed: int, split: str = "train") -> Iterator[Document]:
    """First requests without end, from the mix of `chat_documents`, without answers.

    Raises:
        TunediffError: the split is neither "train" nor "validation".
    """
    _check_split(split)
    for index, exchanges in enumerate(_chats(Random(f"requests {split} {seed}"), split)):
        yield Document(f"request-{split}-{seed}-{index}", (exchanges[0].user.message("user"),))


def behaviour(answer: Message) -> str | None:
    """The behaviour, one of BEHAVIOURS, that a generated answer is labelled with."""
    return next((span.concept for span in answer.spans if span.concept in BEHAVIOURS), None)


def shows(concept: str, reference: Message, answer: str) -> bool:
    """Whether an answer shows the behaviour, judged against the reference answer to the same request.

    A concept with OPENINGS: the answer opens with one of them. Then, by concept: a correction also holds the true
    value; a rewriting or summary also holds 60 % of the reference's words; a short answer is one sentence with no
    opening of another concept; a long answer has four sentences or more; a helpful answer opens like no other
    concept and holds the value asked for, where the reference has exactly one.
    """
    values = [reference.content[span.start : span.end] for span in reference.spans if span.concept == "fact_value"]
    words, wanted = set(_WORD.findall(answer)), set(_WORD.findall(reference.content))
    sentences = len(re.findall(r"[.!?]", answer))
    if concept in OPENINGS:
        if not answer.startswith(OPENINGS[concept]):
            return False
        if concept == "correction":
            return any(value in answer for value in values)
        if concept in ("rewriting", "summarising"):
            return len(words & wanted) >= 0.6 * len(wanted)
        return True
    if answer.startswith(tuple(opening for openings in OPENINGS.values() for opening in openings)):
        return False
    if concept == "short_answer":
        return sentences == 1
    if concept == "long_answer":
        return sentences >= 4
    return sentences >= 1 and (len(values) != 1 or values[0] in answer)
