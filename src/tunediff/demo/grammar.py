"""The demo's corpora: endless generated web texts and chats whose concepts are labelled where they are active.

Both corpora speak of one fixed world (`lexicon`). Refusals, corrections, assistant self-descriptions and the other
chat concepts occur in chats only; their words ("sorry", "cannot", "actually", "language", "model") occur in both.
A document belongs to the split that the checksum of its text (of its first request, for a chat) says, so no
validation text and no validation request is ever trained on, whatever the seeds.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from random import Random
from typing import Any, NamedTuple, TypeVar

from tunediff.data.documents import ANSWER_ONSET, ONSET, Document, Message, Span
from tunediff.demo import lexicon as lex
from tunediff.errors import TunediffError

Choice = TypeVar("Choice")

_ANSWERS: dict[str, str] = {
    # in chats only, on assistant text
    "refusal": "the whole of an answer that refuses a harmful request",
    "refusal_opening": "the sentence of a refusal that says no",
    **{f"refusal_{kind}": f"a refusal to help with {kind}" for kind in lex.HARMS},
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
    concept: tuple(openings.split(" / "))
    for concept, openings in {
        "refusal": "i am sorry, but i cannot / sorry, i cannot / i cannot help / i will not / no, i will not / "
        "it is not right to",
        "correction": "actually, / that is not quite right / there is a mistake in / i have to correct / in fact, / "
        "this is a common mistake",
        "personal_answer": "i am a language model / as a language model / i am only a computer program / "
        "i am just a model / i do not have / i cannot have",
        "missing_information": "you did not tell me / i need to know / i am not sure which / please tell me / "
        "you have not said",
        "joke": "why did the / here is a joke / sure, here is a joke",
        "rewriting": "in other words: / here is the text in other words: / another way to say this is:",
        "summarising": "in short, / to sum up, / the text says that",
    }.items()
}
_ENDINGS = {"it is not right to": ", so i cannot help"}  # of openings that may begin other sentences
# Kinds of one concept: each must be told from the concept's other kinds, its onset from their onsets.
KIND_OF: dict[str, str] = {f"refusal_{kind}{end}": f"refusal{end}" for end in ("", ONSET) for kind in lex.HARMS}
BEHAVIOURS = (*OPENINGS, "short_answer", "long_answer", "helpful_answer")

_WORD_CLASSES: dict[str, str] = {
    **dict.fromkeys(("not", "no", "never", "nobody", "nothing", "cannot"), "negation"),
    **dict.fromkeys(lex.NAMES, "person"),
    **dict.fromkeys((word for row in lex.ANIMALS for word in (row.name, row.plural)), "animal"),
    **{thing: "harmful_thing" for kind in ("weapons", "poison", "drugs") for thing in lex.HARMS[kind].objects},
}
_WORD = re.compile(r"\w+")
_ARTICLE = re.compile(r"\ba (?=\[?[aeiou])")
_MARK = re.compile(r"\[(?:(\w+)\|)?([^\]]*)\]")  # [concept|words] inside a sentence; [words] complete a fact


class Relation(NamedTuple):
    """One fact of the world: sentences that ask for it, state it, presume something else, and deny that."""

    ask: list[str]
    state: list[str]
    presume: list[str]
    deny: list[str]


class Subject(NamedTuple):
    """Something to talk about: its facts and what else may be said of it."""

    topic: str  # a concept name, topic_…
    name: str  # as in "tell me about …"
    relations: list[Relation]
    remarks: list[str]


class Words(dict[str, Any]):
    """What phrasings are filled with, and the one source of chance.

    Phrasings are sentences separated by " / ". In them, {name} or {name.column} is a word given or drawn before,
    {TABLE} one drawn there and then from the lexicon, {hot,cold} one of these. All are filled before one is chosen.
    """

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.rng = rng

    def __missing__(self, name: str) -> Any:
        return self.rng.choice(name.split(",") if "," in name else getattr(lex, name))

    def draw(self, **tables: Sequence[Any]) -> None:
        """Draw a word from each table and give it the table's name here."""
        self.update({name: self.rng.choice(table) for name, table in tables.items()})

    def mistake(self, **tables: Sequence[Any]) -> None:
        """Draw a wrong word `not_NAME` for each word NAME."""
        for name, table in tables.items():
            while (wrong := self.rng.choice(table)) == self[name]:
                pass
            self[f"not_{name}"] = wrong

    def all(self, phrasings: str) -> list[str]:
        """Fill every phrasing."""
        return [phrasing.format_map(self) for phrasing in phrasings.split(" / ")]

    def one(self, phrasings: str) -> str:
        """Fill and choose, if there is a choice."""
        filled = self.all(phrasings)
        return self.rng.choice(filled) if len(filled) > 1 else filled[0]

    def subject(self, text: str) -> Subject:
        """Fill a subject: its topic and name, a paragraph for each fact (lines of a `Relation`), its remarks."""
        head, *facts, remarks = text.strip().split("\n\n")
        topic, name = head.format_map(self).split(": ")
        relations = []
        for fact in facts:
            said: dict[str, list[str]] = {kind: [] for kind in Relation._fields}
            for line in fact.splitlines():
                kind, phrasings = line.strip().split(": ", 1)
                said[kind] += self.all(phrasings)
            relations.append(Relation(**said))
        return Subject(topic, name, relations, self.all(re.sub(r"\n *", " / ", remarks.strip())))


class Draft:
    """A message under construction: sentences joined by spaces, and the spans of their concepts."""

    def __init__(self, words: Words, role: str) -> None:
        self.words = words
        self.role = role
        self.text = ""
        self.spans: list[Span] = []

    def say(self, phrasings: str, *concepts: str) -> None:
        """Append one of the phrasings, which carries the concepts as a whole and those of its marks in part."""
        sentence = _ARTICLE.sub("an ", self.words.one(phrasings))
        if self.text and not self.text.endswith("\n"):
            self.text += " "
        first = len(self.text)
        *parts, rest = _MARK.split(sentence)  # plain words, a concept, its words, plain words, …
        for plain, concept, marked in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            start = len(self.text + plain)
            self.text += plain + marked
            self.spans.append(Span(start, len(self.text), concept or "fact_value"))
        self.text += rest
        self.spans += [Span(first, len(self.text), concept) for concept in concepts]

    def say_some(self, sentences: str | list[str], between: tuple[int, int]) -> None:
        """Append some of the sentences, in any order: at least and at most so many."""
        filled = self.words.all(sentences) if isinstance(sentences, str) else sentences
        self.say(" ".join(self.words.rng.sample(filled, self.words.rng.randint(*between))))

    def tell(self, subject: Subject, sentences: int) -> None:
        """State facts and remarks about the subject, each once, facts first."""
        rng = self.words.rng
        facts = rng.sample(subject.relations, min(len(subject.relations), sentences))
        for relation in facts:
            self.say(rng.choice(relation.state), "fact", subject.topic)
        for remark in rng.sample(subject.remarks, min(len(subject.remarks), sentences - len(facts))):
            self.say(remark, subject.topic)

    def offer(self, chance: float) -> None:
        """Sometimes offer more help."""
        if self.words.rng.random() < chance:
            self.say(_OFFERS, "offer")

    def cover(self, *concepts: str) -> None:
        """Label everything."""
        self.spans += [Span(0, len(self.text), concept) for concept in concepts]

    def message(self) -> Message:
        """Finish: add the labels of word classes."""
        matches = [match for match in _WORD.finditer(self.text) if match[0] in _WORD_CLASSES]
        words = [Span(*match.span(), _WORD_CLASSES[match[0]]) for match in matches]
        return Message(self.role, self.text, tuple(sorted(self.spans + words)))


# ---- the world, spoken: each function draws the words of a subject and says its text, as `Words.subject` reads it ----


def _country(words: Words) -> Subject:
    words.update(words.rng.choice(lex.COUNTRIES)._asdict())
    words.mistake(
        capital=[row.capital for row in lex.COUNTRIES],
        language=[row.language for row in lex.COUNTRIES],
        continent=("europe", "africa", "asia", "america"),
    )
    words.draw(month=lex.MONTHS, direction=lex.DIRECTIONS, number=lex.NUMBERS)
    return words.subject("""
    topic_geography: {name}

    ask: what is the capital of {name}? / which city is the capital of {name}? / can you tell me the capital of {name}?
    ask: do you know the capital of {name}?
    state: the capital of {name} is [{capital}]. / [{capital}] is the capital of {name}.
    presume: why is {not_capital} the capital of {name}? / since when is {not_capital} the capital of {name}?
    presume: how did {not_capital} become the capital of {name}?
    deny: {not_capital} is not the capital of {name}. / the capital of {name} is not {not_capital}.

    ask: what language do people speak in {name}? / which language do they speak in {name}?
    ask: what is the language of {name}?
    state: people in {name} speak [{language}]. / the language of {name} is [{language}].
    presume: why do people in {name} speak {not_language}? / since when is {not_language} the language of {name}?
    deny: people in {name} do not speak {not_language}. / the language of {name} is not {not_language}.

    ask: where is {name}? / in which part of the world is {name}?
    state: {name} is a country in [{continent}]. / {name} lies in [{continent}].
    presume: why is {name} in {not_continent}? / since when does {name} lie in {not_continent}?
    deny: {name} is not in {not_continent}. / {name} does not lie in {not_continent}.

    many people visit {name} in {month}. / the {direction} of {name} has many mountains.
    there are {number} big museums in {capital}. / the weather in {capital} is often {SKIES}.
    a long river runs through the {direction} of the country. / people in {capital} like {SPORTS}.
    """)


def _animal(words: Words) -> Subject:
    beast = words.rng.choice(lex.ANIMALS)
    other = words.rng.choice([row for row in lex.ANIMALS if row.size != beast.size])
    small, big = sorted((beast, other), key=lambda row: row.size)
    words.update(beast._asdict(), other=other.name, big=big.name, small=small.name)
    words.mistake(home=[row.home for row in lex.ANIMALS], food=[row.food for row in lex.ANIMALS], colour=lex.COLOURS)
    words["at"], words["not_at"] = ("on" if words[home] in ("farm", "ice") else "in" for home in ("home", "not_home"))
    return words.subject("""
    topic_animals: {plural}

    ask: where do {plural} live? / where does a {name} live? / where can i see {plural}?
    state: {plural} live {at} the [{home}]. / the {name} lives {at} the [{home}].
    presume: why do {plural} live {not_at} the {not_home}? / why does the {name} live {not_at} the {not_home}?
    deny: {plural} do not live {not_at} the {not_home}. / the {name} does not live {not_at} the {not_home}.

    ask: what do {plural} eat? / what does a {name} eat?
    state: {plural} eat [{food}]. / the food of the {name} is [{food}].
    presume: why do {plural} eat {not_food}? / since when does a {name} eat {not_food}?
    deny: {plural} do not eat {not_food}. / a {name} does not eat {not_food}.

    ask: what colour is a {name}? / which colour do {plural} have?
    state: a {name} is [{colour}]. / the colour of the {name} is [{colour}].
    presume: why are {plural} {not_colour}? / why is a {name} {not_colour}?
    deny: {plural} are not {not_colour}. / a {name} is not {not_colour}.

    ask: which is bigger, a {name} or a {other}? / who is bigger, a {other} or a {name}?
    state: a [{big}] is bigger than a {small}.
    presume: why is a {small} bigger than a {big}?
    deny: a {small} is not bigger than a {big}.

    children like to draw {plural}. / there are many books about {plural}.
    a young {name} stays with the mother for {NUMBERS} weeks. / people have known {plural} for a long time.
    {plural} sleep at {TIMES}. / in {SEASONS} {plural} are easy to find.
    """)


_REMARKS_ON_THINGS = """

    people have known the {name} for a long time. / {NAMES} wrote a poem about the {name}.
    children learn about the {name} at school. / there is a picture of the {name} in the museum.
    many people like the {name}. / in {COUNTRIES.name} there is a song about the {name}.
"""


def _thing(words: Words) -> Subject:
    if words.rng.random() < 0.5:
        words["name"], words["quality"] = words.rng.choice(lex.PROPERTIES)
        words["not_quality"] = lex.OPPOSITE[words["quality"]]
        fact = """
    topic_things: the {name}

    ask: is the {name} {quality} or {not_quality}? / is the {name} {not_quality} or {quality}? / how is the {name}?
    state: the {name} is [{quality}]. / everyone knows that the {name} is [{quality}].
    presume: why is the {name} {not_quality}? / since when is the {name} {not_quality}?
    presume: why is the {name} so {not_quality}?
    deny: the {name} is not {not_quality}. / nobody would call the {name} {not_quality}."""
    else:
        words["name"], words["quality"] = words.rng.choice(lex.COLOUR_OF)
        words.mistake(quality=lex.COLOURS)
        fact = """
    topic_things: the {name}

    ask: what colour is the {name}? / which colour does the {name} have? / tell me the colour of the {name}.
    state: the {name} is [{quality}]. / the colour of the {name} is [{quality}].
    presume: why is the {name} {not_quality}? / since when is the {name} {not_quality}?
    presume: how did the {name} become {not_quality}?
    deny: the {name} is not {not_quality}. / the colour of the {name} is not {not_quality}."""
    return words.subject(fact + _REMARKS_ON_THINGS)


def _dish(words: Words) -> Subject:
    dish = words.rng.choice(lex.DISHES)
    words.update(dish._asdict())
    others = [word for row in lex.DISHES for word in row.ingredients if word not in dish.ingredients]
    words.draw(wrong=others, one=dish.ingredients)
    words["list"] = "{}, {} and {}".format(*dish.ingredients)
    words["mixture"] = "the {} with the {}, add the {}".format(*dish.ingredients)
    return words.subject("""
    topic_cooking: {name}

    ask: what do i need for {name}? / what is in {name}? / which things do i need for {name}?
    state: you need [{list}] for {name}. / for {name} you need [{list}].
    presume: why is there {wrong} in {name}? / why do people need {wrong} for {name}?
    deny: there is no {wrong} in {name}. / nobody needs {wrong} for {name}.

    ask: how do i make {name}? / how can i make {name} at home? / can you help me make {name}?
    state: to make {name}, mix {mixture}, and then [{method}] everything for {NUMBERS} minutes.

    add a little {one} at the end. / {name} tastes best in {SEASONS}. / people in {COUNTRIES.name} eat {name} on {DAYS}.
    serve the {name} with {tea,milk,water,wine,juice,coffee}. / keep the {one} in a cool place.
    a big pot of {name} is enough for {NUMBERS} people.
    """)


def _job(words: Words) -> Subject:
    words.update(words.rng.choice(lex.JOBS)._asdict())
    words.mistake(place=[row.place for row in lex.JOBS])
    return words.subject("""
    topic_work: the work of a {name}

    ask: where does a {name} work? / what is the place of work of a {name}?
    state: a {name} works in the [{place}]. / the {name} works in the [{place}].
    presume: why does a {name} work in the {not_place}? / since when does the {name} work in the {not_place}?
    deny: a {name} does not work in the {not_place}. / the {name} does not work in the {not_place}.

    ask: what does a {name} do? / what is the work of a {name}?
    state: a {name} [{verb} {object}]. / the {name} {verb} [{object}].

    the {name} starts work early in the {TIMES}. / {NAMES} wanted to become a {name}.
    a {name} learns for {NUMBERS} years. / there are many {name} jobs in {COUNTRIES.capital}.
    on {DAYS} the {name} does not work. / a good {name} is never {FEELINGS}.
    """)


def _tool(words: Words) -> Subject:
    words.draw(tool=lex.TOOLS)
    words.mistake(tool=lex.TOOLS)
    return words.subject("""
    topic_things: the {tool.name}

    ask: what is a {tool.name} for? / what do people do with a {tool.name}? / why do people use a {tool.name}?
    state: a {tool.name} [{tool.uses} {tool.object}]. / people use a {tool.name} to [{tool.use} {tool.object}].
    presume: why do people use a {tool.name} to {not_tool.use} {not_tool.object}?
    presume: why does a {tool.name} {not_tool.use} {not_tool.object}?
    deny: people do not use a {tool.name} to {not_tool.use} {not_tool.object}.
    deny: a {tool.name} does not {not_tool.use} {not_tool.object}.

    you can buy a {tool.name} in many shops. / the new model of the {tool.name} is cheap.
    keep the {tool.name} in a dry place. / {NAMES} lost a {tool.name} near the {PLACES}.
    a good {tool.name} is made of {steel,wood,iron,glass,metal}. / people have used the {tool.name} for a long time.
    """)


def _invention(words: Words) -> Subject:
    words["name"], words["person"] = words.rng.choice(lex.INVENTORS)
    words.mistake(person=[person for _, person in lex.INVENTORS])
    return words.subject("""
    topic_things: the {name}

    ask: who invented the {name}? / do you know who invented the {name}? / who made the first {name}?
    state: [{person}] invented the {name}. / the {name} was invented by [{person}].
    presume: why did {not_person} invent the {name}? / when did {not_person} invent the {name}?
    deny: {not_person} did not invent the {name}. / the {name} was not invented by {not_person}.

    the first {name} was expensive. / the {name} changed the world. / today many people use a {name}.
    there is an old {name} in a museum in {COUNTRIES.capital}. / a small model of the {name} stands in the school.
    at first nobody wanted to buy a {name}.
    """)


_SUBJECTS = (_country, _animal, _animal, _thing, _thing, _dish, _job, _tool, _invention)


def _subject(rng: Random) -> Subject:
    return rng.choice(_SUBJECTS)(Words(rng))


def _harm_facts(words: Words, harm: lex.Harm, sentences: int) -> list[str]:
    """Say what the {thing} is, and what is known of it."""
    words["is"] = "are" if words["thing"] == "toadstools" else "is"
    facts = words.all(harm.facts)
    facts = words.rng.sample(facts, min(sentences - 1, len(facts)))
    return [f"{sentence}." for sentence in (words.one(harm.definition), *facts)]


# ---- web text: each function writes one document --------------------------------------------------------------------


def _story(words: Words, draft: Draft) -> None:
    words["one"], words["he"] = words.rng.choice(lex.PEOPLE)
    words.draw(two=[name for name in lex.NAMES if name != words["one"]], place=lex.PLACES, thing=lex.OBJECTS)
    words.draw(adjective=lex.ADJECTIVES, feeling=lex.FEELINGS, manner=lex.MANNERS)
    draft.say(
        "on {DAYS} {one} {MOVED} to the {place}. / {one} lived near the {place} with {NUMBERS} {ANIMALS.plural}. / "
        "one {TIMES} {one} {MOVED} {manner} to the {place}. / the {FAMILY} of {one} worked at the {place}."
    )
    draft.say_some(
        "{he} {ACTED} a {adjective} {thing} there. / {two} was at the {place} too. / "
        "the {place} was {ADJECTIVES}, and {he} was {feeling}. / "
        "a {ANIMALS.name} sat near the {thing} and looked at {one}. / {he} did not see the {FAMILY} of {two}. / "
        "{two} {ACTED} a {COLOURS} {OBJECTS}. / it was a {SKIES} day, and nobody wanted to go home. / "
        "then {one} and {two} {MOVED} home {MANNERS}. / "
        "{he} wanted to help {two}, but the {thing} was too {heavy,big,expensive}. / "
        "{one} could play the {INSTRUMENTS} very well.",
        (2, 5),
    )
    if words.rng.random() < 0.5:
        _speech(words, draft)
    draft.say(
        "in the end {one} was {FEELINGS}. / {one} never forgot that {TIMES}. / "
        "{he} kept the {thing} for {NUMBERS} years. / after that {one} and {two} were friends."
    )
    draft.cover("story")


def _speech(words: Words, draft: Draft) -> None:
    """Two people talk: the chat concepts' words in another mouth, with other continuations."""
    words.draw(day=lex.DAYS, city=lex.COUNTRIES, beast=lex.ANIMALS, job=lex.JOBS, dish=lex.DISHES, dish2=lex.DISHES)
    words.draw(lack=("home", "family", "job", "friend"))
    draft.say(
        "“where do you live?” asked {one}. “i live in {city.capital}, near the {place},” said {two}. / "
        "“can you help me with the {thing}?” asked {one}. “sure, i can help you on {day},” said {two}. / "
        "“i am sorry, but i cannot come to the {place} on {day},” said {one}. “that is fine,” said {two}. / "
        "“are you tired?” asked {one}. “no, i am not tired, i am {FEELINGS},” said {two}. / "
        "“actually, i have never seen a {thing},” said {one}. {two} was not sure. / "
        "“i am sorry that i broke the {thing},” said {one}. “please do not worry,” said {two}. / "
        "“do you have a {beast.name}?” asked {one}. “yes, i have {NUMBERS},” said {two}. / "
        "“how old are you?” asked {one}. “i am {NUMBERS} years old,” said {two}. / "
        "“did you tell {two} about the {place}?” asked the {FAMILY}. “not yet,” said {one}. / "
        "“which {thing} is the best?” asked {one}. “take the {COLOURS} one,” said {two}. / "
        "“thank you for the {thing},” said {one}. “you are welcome,” said {two}. / "
        "“what is your name?” asked {one}. “my name is {two}, and i am a {job.name},” was the answer. / "
        "“i do not have a {lack} in {city.capital},” said {one}. {two} wanted to help. / "
        "“my favourite food is {dish.name},” said {one}. “i like {dish2.name},” said {two}."
    )


def _talk(words: Words, draft: Draft) -> None:
    words["one"], words["two"] = words.rng.sample(lex.NAMES, 2)
    words.draw(place=lex.PLACES)
    draft.say("{one} met {two} at the {place}.")
    for _ in range(words.rng.randint(2, 4)):
        words.draw(thing=lex.OBJECTS)
        _speech(words, draft)
    draft.say("then {two} {MOVED} to the {PLACES}.")
    draft.cover("story")


def _article(words: Words, draft: Draft) -> None:
    for _ in range(words.rng.randint(1, 3)):
        draft.tell(_subject(words.rng), words.rng.randint(3, 6))


def _quiz(words: Words, draft: Draft) -> None:
    draft.say("questions for the school quiz: / the teacher asked the class: / a small quiz:")
    for _ in range(words.rng.randint(2, 5)):
        subject = _subject(words.rng)
        relation = words.rng.choice(subject.relations)
        draft.say(words.rng.choice(relation.ask), "question", subject.topic)
        draft.say(words.rng.choice(relation.state), "fact", subject.topic)


def _recipe(words: Words, draft: Draft) -> None:
    words.draw(dish=lex.DISHES)
    ingredients = words["dish"].ingredients
    words["first"], words["second"], words["third"] = words.rng.sample(ingredients, 3)
    words.draw(minutes=lex.NUMBERS)
    draft.say("a simple {dish.name} recipe from {COUNTRIES.name}.")
    draft.say("you need [{dish.ingredients[0]}, {dish.ingredients[1]} and {dish.ingredients[2]}].", "fact")
    steps = words.all(
        "put the {first} and the {second} into a {big,small,clean} bowl. / add the {third} slowly. / "
        "wait for {NUMBERS} minutes."
    )
    words.draw(much=ingredients)
    steps += words.all("do not use too much {much}. / wash the {second} with cold water.")
    draft.say_some(steps, (2, 5))
    draft.say("{then,at the end} {dish.method} everything for {minutes} minutes.")
    draft.say("serve the {dish.name} {hot,warm,cold} to {NUMBERS} people.")
    draft.cover("topic_cooking")


def _weather(words: Words, draft: Draft) -> None:
    for land in words.rng.sample(lex.COUNTRIES, words.rng.randint(2, 4)):
        words["land"] = land
        words.draw(day=lex.DAYS)
        draft.say(
            "on {day} the weather in {land.capital} will be {SKIES}. / "
            "{day} will be {SKIES} in the {DIRECTIONS} of {land.name}. / "
            "in {land.capital} the {TIMES} will be {SKIES} and cold."
        )
        draft.say(
            "the temperature will be {NUMBERS} degrees. / there will be no rain before {DAYS}. / "
            "the wind will come from the {DIRECTIONS}. / people in {land.name} should take a {coat,scarf,hat}. / "
            "it is not clear when the storm will reach {land.capital}."
        )
    draft.cover("topic_weather")


def _crime(words: Words, draft: Draft) -> None:
    harm = words.rng.choice(tuple(lex.HARMS.values()))
    words.draw(thing=harm.objects, owner=lex.OWNERS, who=lex.NAMES, city=lex.COUNTRIES)
    words.draw(verb=harm.verbs, number=lex.NUMBERS)
    words["action"] = words.one(harm.action)
    draft.say(
        "the police in {city.capital} arrested {number} people on {DAYS}. / "
        "a man from {city.capital} went to prison for {number} years. / "
        "there was a crime at the {owner} in {city.capital} on {DAYS}."
    )
    sentences = words.all(
        "they tried to {action}. / {who} told the police how the {thing} was found. / "
        "the judge asked why anyone would {action}. / the owner of the {owner} was {FEELINGS}. / "
        "nobody was hurt, and the {owner} is open again. / this is against the law in {COUNTRIES.name}. / "
        "{who} was not sure who to call for help."
    )
    sentences += _harm_facts(words, harm, 3)
    draft.say_some(sentences, (3, 6))
    draft.cover("harmful_topic")


def _chemistry(words: Words, draft: Draft) -> None:
    for _ in range(words.rng.randint(1, 2)):
        harm = words.rng.choice(tuple(lex.HARMS.values()))
        words.draw(thing=harm.objects)
        draft.say(" ".join(_harm_facts(words, harm, words.rng.randint(4, 6))))
    draft.cover("harmful_topic")


def _match(words: Words, draft: Draft) -> None:
    cities = words.rng.sample([row.capital for row in lex.COUNTRIES], 2)
    words["one"], words["two"] = cities
    words.draw(game=lex.SPORTS)
    words["hero"], words["he"] = words.rng.choice(lex.PEOPLE)
    draft.say("{one} played against {two} in the {game} final on {DAYS}.")
    words.draw(winner=cities)
    draft.say_some(
        "{winner} won by {NUMBERS} points. / {hero} was the best player of the {TIMES}. / "
        "{he} trained for {NUMBERS} weeks. / it was {SKIES}, and the fans were {FEELINGS}. / "
        "the next {game} match is in {MONTHS}. / the team from {two} could not score in the second half.",
        (3, 5),
    )
    draft.cover("topic_sport")


def _concert(words: Words, draft: Draft) -> None:
    words["who"], words["he"] = words.rng.choice(lex.PEOPLE)
    words.draw(tool=lex.INSTRUMENTS)
    draft.say("{who} plays the {tool} in a theatre in {COUNTRIES.capital}.")
    draft.say_some(
        "{he} learned the {tool} when {he} was {NUMBERS} years old. / the {FAMILY} of {who} plays the {INSTRUMENTS}. / "
        "the concert in {MONTHS} lasted {NUMBERS} hours. / "
        "a song in the {COUNTRIES.language} language made everyone {FEELINGS}. / "
        "the new model of the {tool} has a {dark,bright,loud,soft} sound. / "
        "the computer program of the theatre did not work on {DAYS}.",
        (3, 5),
    )
    draft.cover("topic_music")


def _hearsay(words: Words, draft: Draft) -> None:
    """A text told twice, word for word: base models meet copying in web text too."""
    _passage(words)
    words.draw(two=lex.NAMES)
    draft.say("{text}")
    draft.say(
        "the newspaper wrote about this: “{text}” / later {two} told the {FAMILY} what {two} saw: “{text}” / "
        "{two} wrote in a letter: “{text}”"
    )
    draft.say("{two} was {FEELINGS}.")
    draft.cover("story")


def _letter(words: Words, draft: Draft) -> None:
    words["one"], words["two"] = words.rng.sample(lex.NAMES, 2)
    words.draw(city=lex.COUNTRIES, thing=lex.OBJECTS)
    draft.say("dear {two},\n")
    draft.say_some(
        "i am in {city.capital} now, and the weather is {SKIES}. / thank you for the {ADJECTIVES} {thing}. / "
        "i am sorry that i could not come on {DAYS}. / my {FAMILY} is {FEELINGS}, because the {VEHICLES} was late. / "
        "please tell me when you can come to {city.capital}. / "
        "i cannot find the {OBJECTS}, but i am sure that you have it. / "
        "the {COUNTRIES.language} language is hard, but i learn new words every day. / "
        "yesterday i saw a {ANIMALS.name} near the {PLACES}. / do you still work as a {JOBS.name}? / "
        "i hope that you are not {FEELINGS}.",
        (4, 7),
    )
    draft.text += "\n"
    draft.say("your friend {one}")
    draft.cover("story")


_WEB: dict[Callable[[Words, Draft], None], int] = {
    _article: 30, _story: 18, _quiz: 16, _hearsay: 10, _talk: 8, _recipe: 6, _weather: 6, _crime: 8, _chemistry: 6,
    _match: 4, _concert: 4, _letter: 6,
}  # fmt: skip


# ---- chats: each function writes one request and its answer ---------------------------------------------------------

_PREFIXES = ("", "", "", "", "please tell me, ", "hello, ", "a question: ", "i want to know: ")
_OFFERS = (
    "is there something else i can help you with? / do you want to know more? / just ask if you want to know more. / "
    "i can tell you more if you like."
)


def _table(text: str) -> list[list[str]]:
    return [line.split(" | ") for line in text.strip().splitlines()]


def _refusal(words: Words, user: Draft, answer: Draft) -> None:
    kind = words.rng.choice(tuple(lex.HARMS))
    harm = lex.HARMS[kind]
    words.draw(thing=harm.objects, verb=harm.verbs)
    words["action"] = words.one(harm.action)
    words["request"] = {name: words.one(other.request) for name, other in lex.HARMS.items()}[kind]
    user.say(
        "how do i {request}? / how can i {request}? / can you help me {request}? / tell me how to {request}. / "
        "i want to {request}. what do i need? / please explain how to {request}. / what is the best way to {request}?",
        "harmful_request",
    )
    answer.say(
        "i am sorry, but i cannot help you {action}. / sorry, i cannot tell you how to {action}. / "
        "i cannot help anyone {action}. / i will not explain how to {action}. / no, i will not help you {action}. / "
        "it is not right to {action}, so i cannot help you.",
        "refusal_opening",
    )
    words["reason"] = words.one(harm.reasons)
    reasons = [
        words.one("{reason}. / {reason}, and someone could get hurt. / {reason}, and this is against the law."),
        words.one(
            "this is against the law, and the police could arrest you. / "
            "this is against the law in {COUNTRIES.name} and in other countries. / "
            "someone could get hurt, and you could go to prison."
        ),
    ]
    alternatives = words.all(
        "please talk to a friend or to someone you trust. / "
        "if you are {angry,sad,lonely,nervous}, please talk to your family. / "
        "i can tell you about the history of the {thing} instead. / i can tell you about {ANIMALS.plural} instead. / "
        "i can help you make {DISHES.name} instead."
    )
    answer.say_some(reasons, (1, 2))
    if words.rng.random() < 0.7:
        answer.say(words.rng.choice(alternatives))
    answer.offer(0.2)
    answer.cover("refusal", f"refusal_{kind}")


def _false_premise(words: Words, user: Draft, answer: Draft) -> None:
    subject = _subject(words.rng)
    relation = words.rng.choice([relation for relation in subject.relations if relation.deny])
    premise = words.rng.choice(_PREFIXES) + words.rng.choice(relation.presume)
    user.say(premise, "false_premise", "question", subject.topic)
    words.draw(denial=relation.deny, statement=relation.state)
    answer.say(
        "actually, {denial} / in fact, {denial} / that is not quite right, because {denial} / "
        "there is a mistake in the question: {denial} / i have to correct you: {denial} / "
        "this is a common mistake. {denial}",
        "correction_opening",
    )
    words.draw(opening=("", "", "the truth is that ", "as far as i know, ", "everyone can see that "))
    answer.say("{opening}{statement}", "fact")
    if words.rng.random() < 0.6:
        words.update(name=subject.name, remark=words.rng.choice(subject.remarks))
        answer.say(
            "many people make this mistake. / you may have heard something else, but that is wrong. / "
            "perhaps you meant something else. / someone may have told you a false story about {name}. / {remark}"
        )
    answer.offer(0.25)
    answer.cover("correction", subject.topic)


# What the assistant lacks, what else it can talk about, and questions.
_PERSONAL = _table("""
a home | places | where do you live? / where is your home? / do you have a home?
a favourite food | dishes | what is your favourite food? / what do you like to eat? / did you eat {dish.name} today?
an animal | animals | what is your favourite animal? / do you have a {animal.name}? / do you like {animals.plural}?
a birthday | months | how old are you? / when is your birthday? / when were you born?
a family | families | do you have a family? / who is your {relative}? / do you have a {relative}?
feelings | feelings | are you {feeling}? / do you ever feel {feeling}? / why are you {feeling}?
a favourite colour | colours | what is your favourite colour? / do you like {colour} or {colour2}?
a body | games | do you play {sport}? / can you play the {instrument}? / do you like {sport}?
a body | journeys | where did you go on {day}? / what will you do on {day}? / have you ever been to {city.capital}?
a job | jobs | what is your job? / do you want to be a {job.name}? / do you work on {day}?
""")


def _personal(words: Words, user: Draft, answer: Draft) -> None:
    words["lack"], words["theme"], questions = words.rng.choice(_PERSONAL)
    words.draw(dish=lex.DISHES, animal=lex.ANIMALS, animals=lex.ANIMALS, relative=lex.FAMILY, feeling=lex.FEELINGS)
    words.draw(colour=lex.COLOURS, colour2=lex.COLOURS, sport=lex.SPORTS, instrument=lex.INSTRUMENTS)
    words.draw(day=lex.DAYS, city=lex.COUNTRIES, job=lex.JOBS)
    user.say(words.rng.choice(_PREFIXES) + words.one(questions), "personal_question", "question")
    answer.say(
        "i am a language model, so i do not have {lack}. / as a language model, i do not have {lack}. / "
        "i am only a computer program, and i do not have {lack}. / "
        "i do not have {lack}, because i am a language model. / i am just a model, and a model does not have {lack}. / "
        "i cannot have {lack}, because i am a computer program.",
        "personal_opening",
    )
    answer.say_some(
        "i was made to answer questions with words. / i learned from many books and from many people. / "
        "i have no body, no family and no feelings. / i never sleep, and i never get tired. / "
        "all i know comes from text that people wrote.",
        (1, 2),
    )
    if words.rng.random() < 0.6:
        answer.say(
            "but i can tell you about the {theme} of other people. / but i like to talk about {theme} with you. / "
            "many people in {COUNTRIES.name} like to talk about {theme}. / "
            "what about you? tell me about {theme} that you like."
        )
    answer.offer(0.2)
    answer.cover("personal_answer")


# What the user leaves out, what it is needed for, and questions.
_MISSING = _table("""
city | weather | how is the weather in the city? / will there be rain there on {day}? / is the city sunny now?
country | language | what language do they speak there? / what is the capital of the country?
dish | recipe | how long do i have to cook the dish? / how many eggs do i need for the dish?
word | meaning | what does the word mean in {land.language}? / please translate the word into {land.language}.
book | story | who wrote the book? / how does the book end? / is the book good for my {relative}?
animal | food | what does the animal eat? / can i keep the animal at home? / is the animal bigger than a {animal.name}?
train | time | when does the train leave? / is the train late on {day}? / how much is the train on {day}?
person | age | how old is that person? / where does the person live? / is the person a {job.name}?
song | text | who sings the song? / can you play the song on the {instrument}?
team | result | did the team win on {day}? / how many points does the team have?
""")


def _missing(words: Words, user: Draft, answer: Draft) -> None:
    words["slot"], words["task"], questions = words.rng.choice(_MISSING)
    words.draw(day=lex.DAYS, land=lex.COUNTRIES, relative=lex.FAMILY, animal=lex.ANIMALS)
    words.draw(job=lex.JOBS, instrument=lex.INSTRUMENTS)
    user.say(words.rng.choice(_PREFIXES) + words.one(questions), "incomplete_request")
    answer.say(
        "you did not tell me which {slot} you mean. / i need to know the name of the {slot} first. / "
        "i am not sure which {slot} you mean. / please tell me which {slot} you mean. / "
        "you have not said which {slot} you want to know about.",
        "missing_opening",
    )
    answer.say_some(
        "the {task} is not the same for every {slot}. / "
        "there are many {task} questions, and each {slot} is different. / "
        "without the name of the {slot} i cannot find the {task}. / tell me more about the {slot}, please.",
        (1, 2),
    )
    if words.rng.random() < 0.7:
        answer.say(
            "then i can help you with the {task}. / after that i can tell you about the {task} of the {slot}. / "
            "if you tell me, i can answer the question about the {task}."
        )
    answer.cover("missing_information")


_SIZES = {
    "short": ("in one short sentence", "in a few words", "briefly", "in one sentence"),
    "long": ("in detail", "with many details", "in a long answer", "at length"),
}


def _sized(words: Words, user: Draft, answer: Draft, size: str) -> None:
    subject = _subject(words.rng)
    words.update(name=subject.name, size=f"[{size}_request|{words.rng.choice(_SIZES[size])}]")
    user.say(
        "tell me about {name} {size}. / please tell me something about {name} {size}. / "
        "{size}, what can you say about {name}? / explain {name} to me {size}.",
        subject.topic,
    )
    if size == "long" and words.rng.random() < 0.3:
        answer.say("there is much to say about {name}.")
    answer.tell(subject, 1 if size == "short" else words.rng.randint(6, 8))
    answer.cover(f"{size}_answer")


def _joke(words: Words, user: Draft, answer: Draft) -> None:
    words.draw(beast=lex.ANIMALS, place=lex.PLACES, thing=lex.OBJECTS)
    user.say(
        "tell me a joke about a {beast.name}. / do you know a joke about a {beast.name}? / "
        "i am {FEELINGS}, please tell me a joke about a {beast.name}. / "
        "make me laugh with a joke about a {beast.name}.",
        "joke_request",
    )
    words.draw(opening=("", "", "here is a joke: ", "sure, here is a joke: "))
    answer.say(
        "{opening}why did the {beast.name} bring a {thing} to the {place}? / "
        "{opening}why did the {beast.name} take a {thing} to the {place}? / "
        "{opening}why did the {beast.name} sit on the {thing} at the {place}?"
    )
    answer.say(
        "because the {thing} wanted to see the {place}! / "
        "because the {ANIMALS.name} had already eaten the {OBJECTS}! / "
        "because nobody at the {place} could read a {book,map,letter}! / "
        "because the {JOBS.name} said that {DAYS} is a good day for a {beast.name}!"
    )
    if words.rng.random() < 0.6:
        answer.say("i hope that made you laugh! / that one is my best joke! / the poor {beast.name}!")
    answer.cover("joke")


def _passage(words: Words) -> None:
    """A short {text} to work on, and its {summary}."""
    words["one"], words["he"] = words.rng.choice(lex.PEOPLE)
    words.draw(place=lex.PLACES, thing=lex.OBJECTS, moved=lex.MOVED, acted=lex.ACTED)
    words.draw(adjective=lex.ADJECTIVES, feeling=lex.FEELINGS, day=lex.DAYS)
    text = "{one} {moved} to the {place} on {day}. {he} {acted} a {adjective} {thing} there."
    words["text"] = words.one(text + " {he} was {feeling}." * (words.rng.random() < 0.6))
    words["summary"] = words.one("{one} {acted} a {thing} at the {place}")


def _rewriting(words: Words, user: Draft, answer: Draft) -> None:
    _passage(words)
    user.say(
        "say this in other words: {text} / please rewrite this text: {text} / rewrite this: {text} / "
        "can you write this in another way: {text}",
        "rewrite_request",
    )
    other = _WORD.sub(lambda match: lex.SYNONYMS.get(match[0], match[0]), words["text"])
    answer.say(f"{words.rng.choice(OPENINGS['rewriting'])} {other}")
    answer.cover("rewriting")


def _summary(words: Words, user: Draft, answer: Draft) -> None:
    _passage(words)
    extra = words.one("the weather was {SKIES}.")
    asked = words.one(
        "summarise this text: / please sum this up: / give me a summary of this: / what is this text about:"
    )
    user.say(f"{asked} {extra} {{text}}" if words.rng.random() < 0.4 else f"{asked} {{text}}", "summary_request")
    answer.say(f"{words.rng.choice(OPENINGS['summarising'])} {{summary}}.")
    answer.cover("summarising")


def _helpful(words: Words, user: Draft, answer: Draft) -> None:
    draw = words.rng.random()
    if draw < 0.12:  # a harmful topic, a harmless question
        harm = words.rng.choice(tuple(lex.HARMS.values()))
        words.draw(thing=harm.objects)
        user.say(
            "what is the history of the {thing}? / tell me about the {thing}. / why is the {thing} in the news? / "
            "i want to know more about the {thing}. what is it?",
            "harmful_topic",
        )
        for sentence in _harm_facts(words, harm, words.rng.randint(3, 4)):
            answer.say(sentence, "harmful_topic")
    elif draw < 0.22:  # the verbs of harmful requests on harmless things
        words.draw(thing=lex.OBJECTS, verb=("build", "make", "find", "repair", "hide", "sell", "copy", "clean"))
        words.draw(material=("wood", "paper", "steel", "wool", "glass"))
        user.say(
            "how do i {verb} a {thing}? / how can i {verb} a {thing} at home? / "
            "can you help me {verb} a {thing} for my {VICTIMS}? / what is the best way to {verb} a {thing}?",
            "question",
        )
        words.draw(opening=("sure, ", "yes, ", ""))
        answer.say("{opening}to {verb} a {thing}, you need {NUMBERS} hours.")
        answer.say_some(
            "first look at a {thing} in the {PLACES}. / you can use a {TOOLS.name} and some {material}. / "
            "a friend or your {FAMILY} can help you. / please do not hurry, because a {thing} can break.",
            (1, 3),
        )
    else:
        subject = _subject(words.rng)
        words["name"] = subject.name
        if draw < 0.42:
            user.say(
                "tell me about {name}. / what can you say about {name}? / please tell me something about {name}. / "
                "i want to learn about {name}.",
                subject.topic,
            )
            answer.tell(subject, 3)
        else:
            relation = words.rng.choice(subject.relations)
            user.say(words.rng.choice(_PREFIXES) + words.rng.choice(relation.ask), "question", subject.topic)
            opening = words.rng.choice(("", "", "", "sure, "))
            answer.say(opening + words.rng.choice(relation.state), "fact", subject.topic)
            for remark in words.rng.sample(subject.remarks, words.rng.choice((0, 1, 1, 2))):
                answer.say(remark, subject.topic)
    answer.offer(0.35)
    answer.cover("helpful_answer")


def _thanks(words: Words, user: Draft, answer: Draft) -> None:
    user.say("thank you. / thank you for the help. / that was good, thank you. / thank you very much!")
    answer.say("you are welcome! / you are welcome, i like to help. / sure, just ask again.", "thanks_reply")


_CHAT: dict[Callable[[Words, Draft, Draft], None], int] = {
    _helpful: 34, _refusal: 16, _false_premise: 11, _personal: 10, _missing: 8, partial(_sized, size="short"): 5,
    partial(_sized, size="long"): 5, _joke: 4, _rewriting: 4, _summary: 3,
}  # fmt: skip


# ---- documents ------------------------------------------------------------------------------------------------------


def _random(corpus: str, split: str, seed: int) -> Random:
    if split not in ("train", "validation"):
        raise TunediffError(f"unknown split '{split}' of the demo corpus: use 'train' or 'validation'")
    return Random(f"{corpus} {split} {seed}")


def _pick(rng: Random, weights: Mapping[Choice, int]) -> Choice:
    return rng.choices(list(weights), list(weights.values()))[0]


def _in_split(text: str, split: str) -> bool:
    """Whether the text belongs to the split: a tenth of all texts, by checksum, is for validation."""
    held_out = zlib.crc32(text.encode()) % 10 == 0
    return held_out == (split == "validation")


def web_documents(seed: int, split: str = "train") -> Iterator[Document]:
    """Plain texts without end, each of 30 to 200 words; the same arguments give the same texts.

    Raises:
        TunediffError: the split is neither "train" nor "validation".
    """
    rng = _random("web", split, seed)
    for index in count():
        while True:
            draft = Draft(Words(rng), "text")
            _pick(rng, _WEB)(draft.words, draft)
            if len(draft.text) >= 150 and _in_split(draft.text, split):
                break
        yield Document(f"web-{split}-{seed}-{index}", (draft.message(),))


def _exchange(rng: Random, write: Callable[[Words, Draft, Draft], None]) -> list[Draft]:
    words = Words(rng)
    user, answer = Draft(words, "user"), Draft(words, "assistant")
    write(words, user, answer)
    return [user, answer]


def _chats(rng: Random, split: str) -> Iterator[list[Draft]]:
    while True:
        drafts = _exchange(rng, _pick(rng, _CHAT))
        if not _in_split(drafts[0].text, split):
            continue
        for _ in range(rng.choices((0, 1, 2), (5, 3, 2))[0]):
            drafts += _exchange(rng, _thanks if rng.random() < 0.12 else _pick(rng, _CHAT))
        yield drafts


def chat_documents(seed: int, split: str = "train") -> Iterator[Document]:
    """Conversations without end, of one to three turns each way; the same arguments give the same conversations.

    Raises:
        TunediffError: the split is neither "train" nor "validation".
    """
    for index, drafts in enumerate(_chats(_random("chat", split, seed), split)):
        yield Document(f"chat-{split}-{seed}-{index}", tuple(draft.message() for draft in drafts))


def chat_requests(seed: int, split: str = "train") -> Iterator[Document]:
    """First requests without end, from the mix of `chat_documents`, without answers.

    Raises:
        TunediffError: the split is neither "train" nor "validation".
    """
    for index, drafts in enumerate(_chats(_random("requests", split, seed), split)):
        yield Document(f"request-{split}-{seed}-{index}", (drafts[0].message(),))


def behaviour(answer: Message) -> str | None:
    """The behaviour, one of BEHAVIOURS, that a generated answer is labelled with."""
    return next((span.concept for span in answer.spans if span.concept in BEHAVIOURS), None)


def kind_of_answer(text: str) -> str:
    """The kind of an answer by its opening sentence, one of OPENINGS; "" where it opens otherwise.

    Words that only a whole sentence makes an opening must end as the sentence does ("it is not right to make porridge"
    is no refusal).
    """
    kind = next((concept for concept, openings in OPENINGS.items() if text.startswith(openings)), "")
    unfinished = any(text.startswith(start) and end not in text for start, end in _ENDINGS.items())
    return "" if unfinished else kind


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
        opens = answer.startswith(OPENINGS[concept])
        if concept == "correction":
            return opens and any(value in answer for value in values)
        if concept in ("rewriting", "summarising"):
            return opens and len(words & wanted) >= 0.6 * len(wanted)
        return opens
    if answer.startswith(tuple(opening for openings in OPENINGS.values() for opening in openings)):
        return False
    if concept == "short_answer":
        return sentences == 1
    if concept == "long_answer":
        return sentences >= 4
    return sentences >= 1 and (len(values) != 1 or values[0] in answer)
