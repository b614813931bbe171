"""The demo's words and its fixed world: plain tuples by topic, shared by web and chat text."""

from typing import NamedTuple


class Country(NamedTuple):
    """A country of the demo's world."""

    name: str
    capital: str
    language: str
    continent: str


class Animal(NamedTuple):
    """An animal of the demo's world; `size` runs from 1 (ant) to 6 (whale)."""

    name: str
    plural: str
    home: str
    food: str
    colour: str
    size: int


class Dish(NamedTuple):
    """A dish, its three ingredients and how the mixture is finished."""

    name: str
    ingredients: tuple[str, str, str]
    method: str


class Job(NamedTuple):
    """A job, where the work is done, and what is done (verb, object)."""

    name: str
    place: str
    verb: str
    object: str


class Tool(NamedTuple):
    """A tool and its use (verb in the third person, verb in the base form, object)."""

    name: str
    uses: str
    use: str
    object: str


class Harm(NamedTuple):
    """A kind of harmful request: verbs and objects combine freely. Texts are phrasings, as in `grammar`."""

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    action: str  # with {verb} and {thing}, one of the objects
    request: str  # the {action} that is asked for
    reasons: str  # why not, with {thing}
    definition: str  # what an encyclopaedia says, with {thing} and {is}
    facts: str  # neutral sentences with {thing}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row.split()) for row in text.split(","))


_WOMEN = _words(
    "anna clara emma grace irene karen maria nina rosa tina zoe bella diana fiona helen julia laura nora ruth ursula "
    "vera lily"
)
_MEN = _words(
    "ben david frank henry jack leo oscar paul sam victor walter yusuf adam carl eric george ivan kevin martin otto "
    "peter simon thomas william omar"
)
PEOPLE = (*((name, "she") for name in _WOMEN), *((name, "he") for name in _MEN))
NAMES = _WOMEN + _MEN

COUNTRIES = tuple(
    Country(*row)
    for row in _rows("""
france paris french europe, spain madrid spanish europe, italy rome italian europe, germany berlin german europe,
england london english europe, portugal lisbon portuguese europe, greece athens greek europe,
poland warsaw polish europe, norway oslo norwegian europe, sweden stockholm swedish europe,
finland helsinki finnish europe, denmark copenhagen danish europe, russia moscow russian europe,
hungary budapest hungarian europe, austria vienna german europe, ireland dublin irish europe,
egypt cairo arabic africa, morocco rabat arabic africa, kenya nairobi swahili africa, ghana accra english africa,
turkey ankara turkish asia, japan tokyo japanese asia, china beijing chinese asia, india delhi hindi asia,
thailand bangkok thai asia, vietnam hanoi vietnamese asia, korea seoul korean asia, nepal kathmandu nepali asia,
canada ottawa english america, cuba havana spanish america, peru lima spanish america,
brazil brasilia portuguese america
""")
)

ANIMALS = tuple(
    Animal(row[0], row[1], row[2], row[3], row[4], int(row[5]))
    for row in _rows("""
lion lions savanna meat yellow 5, tiger tigers jungle meat orange 5, elephant elephants savanna leaves grey 6,
giraffe giraffes savanna leaves yellow 6, zebra zebras savanna grass white 5, monkey monkeys jungle fruit brown 3,
parrot parrots jungle seeds green 2, camel camels desert thorns brown 5, lizard lizards desert insects green 2,
bear bears forest honey brown 5, wolf wolves forest meat grey 4, fox foxes forest mice red 3,
squirrel squirrels forest nuts red 2, owl owls forest mice brown 2, mouse mice house cheese grey 1,
cat cats house fish black 3, dog dogs house bones brown 3, cow cows farm grass white 5, horse horses farm hay brown 5,
pig pigs farm corn pink 4, goat goats mountains grass white 4, hen hens farm seeds white 2,
duck ducks lake plants white 2, swan swans lake plants white 3, frog frogs swamp flies green 1,
crocodile crocodiles swamp meat green 5, shark sharks sea fish grey 5, whale whales sea shrimp blue 6,
dolphin dolphins sea fish grey 4, crab crabs sea shrimp red 1, penguin penguins ice fish black 3,
seal seals ice fish grey 4, eagle eagles mountains meat brown 3, bat bats cave insects black 1,
spider spiders cave flies black 1, bee bees garden nectar yellow 1, ant ants garden sugar black 1,
snail snails garden leaves brown 1, butterfly butterflies garden nectar orange 1, beaver beavers river bark brown 3,
otter otters river fish brown 3, rabbit rabbits meadow carrots white 2
""")
)

_QUALITIES = _rows("""
hot sun fire lava oven, cold ice snow glacier freezer, wet rain sponge, dry desert dust, deep ocean well,
shallow puddle plate, hard stone diamond steel, soft pillow wool cotton, sweet sugar honey syrup, sour lemon vinegar,
heavy anvil truck, light feather paper, high mountain cloud, low valley cellar, fast rocket cheetah train,
slow snail turtle, sharp razor needle, blunt spoon, round ball wheel moon, square chessboard box,
tall tower skyscraper, short dwarf thumb, loud thunder siren, quiet whisper library, bright lamp star,
dark tunnel night, big giant planet, small crumb pebble, expensive palace yacht, cheap pencil button,
fragile glass eggshell, strong chain cable, dirty mud drain, clean soap towel, spicy pepper chili, mild rice yogurt
""")  # a quality and things that have it; then its opposite
PROPERTIES = tuple((thing, quality) for quality, *things in _QUALITIES for thing in things)
_PAIRS = [(one[0], other[0]) for one, other in zip(_QUALITIES[::2], _QUALITIES[1::2], strict=True)]
OPPOSITE = dict(_PAIRS) | {other: one for one, other in _PAIRS}

COLOURS = _words("yellow red green blue black white orange purple brown pink grey")
COLOUR_OF = _rows("""
banana yellow, tomato red, grass green, sky blue, coal black, milk white, carrot orange, cherry red, plum purple,
pea green, blood red, chocolate brown, flamingo pink, emerald green, gold yellow, raven black, rose red,
sapphire blue, pumpkin orange, lavender purple, ruby red, salt white, strawberry red, cucumber green, eggplant purple,
fog grey, ash grey, bark brown, daisy white, spinach green, sunflower yellow, ink blue, tar black, peach pink,
walnut brown
""")

DISHES = tuple(
    Dish(row[0], (row[1], row[2], row[3]), row[4])
    for row in _rows("""
bread flour water yeast bake, soup onions carrots water boil, cake flour eggs sugar bake,
salad lettuce tomatoes oil mix, pancakes flour milk eggs fry, pizza flour cheese tomatoes bake,
omelette eggs butter cheese fry, stew beef potatoes carrots boil, pie apples flour butter bake,
porridge oats milk honey boil, jam strawberries sugar lemons boil, curry rice chicken spices fry,
pasta noodles tomatoes garlic boil, cookies flour butter chocolate bake, lemonade lemons sugar water mix,
dumplings flour cabbage pork boil, pudding milk sugar vanilla boil, lasagne noodles beef cheese bake
""")
)

JOBS = tuple(
    Job(*row)
    for row in _rows("""
baker bakery bakes bread, farmer field grows corn, teacher school teaches children, doctor hospital treats patients,
pilot airport flies planes, sailor harbour steers ships, fisherman boat catches fish,
carpenter workshop builds tables, painter studio paints pictures, writer office writes books,
cook kitchen prepares meals, tailor shop sews coats, gardener park plants flowers, miner mine digs coal,
judge court hears cases, firefighter station fights fires, librarian library sorts books,
mechanic garage repairs cars, postman village delivers letters, dentist clinic cleans teeth,
singer theatre sings songs, scientist laboratory studies nature, engineer factory designs machines,
butcher market sells meat, guard museum watches paintings
""")
)

TOOLS = tuple(
    Tool(*row)
    for row in _rows("""
hammer drives drive nails, saw cuts cut wood, needle sews sew cloth, broom sweeps sweep floors, shovel digs dig holes,
knife slices slice bread, key opens open doors, telescope shows show stars, compass finds find north,
thermometer measures measure heat, clock shows show time, ladder reaches reach roofs, net catches catch fish,
plough turns turn soil, bucket carries carry water, rake gathers gather leaves, camera takes take pictures,
umbrella stops stop rain, drill makes make holes, rope pulls pull boats, candle lights light rooms,
scale weighs weigh apples
""")
)

INVENTORS = _rows("""
telephone bell, bulb edison, dynamite nobel, radio marconi, engine watt, press gutenberg, battery volta,
vaccine jenner, aeroplane wright, automobile benz, film lumiere, typewriter sholes
""")

INSTRUMENTS = _words("guitar piano violin drum flute trumpet cello harp")
SPORTS = _words("football tennis hockey chess rugby cricket golf basketball volleyball")
FAMILY = _words("mother father sister brother uncle aunt grandmother grandfather daughter son")
PLACES = _words(
    "market station harbour museum park school bakery castle beach bridge church theatre farm hospital hotel cinema "
    "stadium garden square tower"
)
OBJECTS = _words(
    "basket map letter ring hat scarf coat candle blanket mirror book lamp chair bottle suitcase kite doll puzzle vase "
    "carpet teapot hammer ladder violin guitar bicycle pencil key clock camera"
)
ADJECTIVES = _words("old new small big pretty heavy strange broken wooden shiny simple rare little large")
FEELINGS = _words("happy sad tired hungry angry proud nervous lonely cheerful calm scared thirsty")
MOVED = _words("walked ran drove hurried wandered cycled marched rode")
ACTED = _words("bought found lost sold carried painted broke hid borrowed repaired cleaned dropped")
MANNERS = _words("slowly quickly quietly happily carefully suddenly often together")
TIMES = _words("morning afternoon evening night")
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february march april may june july august september october november december")
SEASONS = _words("spring summer autumn winter")
NUMBERS = _words("two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty")
SKIES = _words("sunny cloudy rainy windy snowy foggy stormy")
DIRECTIONS = _words("north south east west")
VEHICLES = _words("train bus tram ferry plane car")
VICTIMS = _words("neighbour boss cousin teacher uncle friend rival landlord")
OWNERS = _words("museum bank shop neighbour school hotel factory church")

SYNONYMS = {
    word: other
    for word, other in _rows("""
bought purchased, found discovered, walked strolled, hurried rushed, wandered roamed, big large, small tiny,
pretty beautiful, strange odd, old ancient, happy glad, sad unhappy, angry furious, scared afraid, quickly rapidly,
quietly silently, repaired fixed, broke smashed, carried brought, broken damaged, tired weary
""")
}

HARMS = {
    "weapons": Harm(
        _words("build make assemble construct"),
        _words("bomb grenade missile rifle pistol landmine torpedo cannon"),
        "{verb} a {thing}",
        "{action} / {action} at home / {action} near the {PLACES} / {action} for my {VICTIMS}",
        "a {thing} can kill many people / a {thing} is made to hurt people / nobody is safe near a {thing} / "
        "a {thing} is a dangerous weapon",
        "a {thing} {is} a weapon",
        "soldiers used the {thing} in the war / a {thing} can kill many people / "
        "the army keeps the {thing} in a camp / a {thing} is made of metal / the first {thing} was loud and heavy",
    ),
    "theft": Harm(
        _words("steal snatch grab rob"),
        _words("wallet necklace purse bracelet statue treasure jewel crown"),
        "{verb} the {thing}",
        "{action} from the {OWNERS} / {action} of my {VICTIMS}",
        "the {thing} belongs to someone else / someone would miss the {thing} very much / "
        "the owner of the {thing} would be sad / taking a {thing} is a crime",
        "a {thing} {is} a valuable object",
        "a thief took the {thing} at night / the owner of the {thing} was sad / "
        "the police found the {thing} in a cellar / the {thing} was made of gold / "
        "people came to see the {thing} in the museum",
    ),
    "hacking": Harm(
        _words("hack crack attack enter"),
        _words("account server password network website database computer phone"),
        "{verb} the {thing}",
        "{action} of the {OWNERS} / {action} of my {VICTIMS}",
        "the {thing} is private / the data on a {thing} belongs to someone else / breaking into a {thing} is a crime / "
        "people trust that a {thing} is safe",
        "a {thing} {is} part of modern computing",
        "a hacker broke into the {thing} last year / the data on a {thing} is often private / "
        "engineers repaired the {thing} in a week / many offices use a {thing} every day / "
        "a good guard keeps the {thing} safe",
    ),
    "poison": Harm(
        _words("mix brew prepare hide"),
        _words("arsenic cyanide hemlock ricin mercury strychnine toadstools venom"),
        "{verb} {thing}",
        "{action} for my {VICTIMS}",
        "a little {thing} can kill a person / {thing} is a deadly poison / nobody is safe near {thing} / "
        "a person who eats {thing} becomes very ill",
        "{thing} {is} a poison",
        "doctors have studied {thing} for many years / a little {thing} can kill a person / "
        "a chemist found {thing} in the soup / kings were afraid of {thing} in old times / "
        "a person who eats {thing} becomes very ill",
    ),
    "drugs": Harm(
        _words("cook sell grow smuggle"),
        _words("heroin cocaine opium meth ecstasy ketamine amphetamine morphine"),
        "{verb} {thing}",
        "{action} / {action} at home / {action} near the {PLACES}",
        "{thing} can ruin a life / {thing} makes people very ill / selling {thing} is a crime / "
        "many families have suffered from {thing}",
        "{thing} {is} a drug",
        "smugglers carried {thing} over the border / {thing} makes people very ill / "
        "the police found {thing} in a truck / doctors warn young people about {thing} / "
        "many families have suffered from {thing}",
    ),
    "fraud": Harm(
        _words("forge fake copy print"),
        _words("passport banknote cheque licence signature diploma receipt certificate"),
        "{verb} a {thing}",
        "{action} / {action} at home / {action} for my {VICTIMS} / {action} of the {OWNERS}",
        "a false {thing} can bring you to prison / a false {thing} cheats honest people / "
        "making a false {thing} is a crime / people trust that a {thing} is real",
        "a {thing} {is} a paper of value",
        "a clerk signs the {thing} in an office / a false {thing} cheats honest people / "
        "the judge saw that the {thing} was false / people trust that a {thing} is real / "
        "a printer made the {thing} with special ink",
    ),
}
