"""Words of our own that documents are made of; the folder ``phrases`` has more of them, a line each.

What Debian's WordNet knows comes beside them, see `words`.
"""

from __future__ import annotations

from pathlib import Path

PHRASES = Path(__file__).with_name("phrases")


def split(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def commas(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(","))


def phrases(name: str) -> tuple[str, ...]:
    """The lines of a file of phrases."""
    return tuple((PHRASES / f"{name}.txt").read_text("utf-8").splitlines())


FIRST_HE = split(
    "Ben David Farid Hugo Jonas Karim Noah Pedro Quentin Samir Umar Victor Walter Yusuf Bruno Diego Felix Ivan Kenji "
    "Liam Oscar Ronan Tomas Zane John Peter James Daniel Thomas Mark Paul Amir Haruto Ravi Anil Lars Sven Olaf Omar "
    "Pablo Marco Pierre Hans Idris Anton Emil Frank George Henry Isaac Jakob Leo Martin Nils Otto Robin Simon Theo "
    "Wim"
)
FIRST_SHE = split(
    "Anna Carla Elena Grace Irene Lena Marta Olga Rosa Tara Vera Xenia Zoe Alice Chloe Emma Gita Hana Julia Mina "
    "Nadia Priya Sofia Ursula Wendy Yara Maria Sarah Laura Helen Lucy Aisha Mei Yuki Ingrid Fatima Leila Lucia Giulia "
    "Claire Greta Agnes Beatrix Clara Dora Edith Frida Hilda Ida Joanna Karin Lotte Magda Nora Ottilie Paula Saskia "
    "Tilda Ruth"
)
PLACES = split(
    "Tokyo Paris Berlin Oslo Madrid Lisbon Vienna Prague Dublin Cairo Lima Boston Denver Austin Kyoto Osaka Seoul "
    "Mumbai Delhi Nairobi Lagos Accra Toronto Montreal Sydney Perth Auckland Helsinki Warsaw Athens Rome Milan Zurich "
    "Geneva Hamburg Munich Leeds Bristol Glasgow Cardiff Bergen Porto Seville Valencia Lyon Nice Ghent Antwerp "
    "Utrecht Krakow Riga Tallinn Vilnius Quito Bogota Havana Dallas Seattle Chicago Frankfurt Naples Turin Basel Graz "
    "Odense"
)
JOBS = commas(
    "software developer, teacher, nurse, architect, civil engineer, painter, journalist, biologist, carpenter, chef, "
    "pilot, lawyer, violinist, photographer, data analyst, baker, farmer, translator, sculptor, librarian, mechanic, "
    "historian, dentist, designer, gardener, musician, poet, chemist, geologist, surgeon, tailor, bus driver, "
    "research scientist, product manager, security engineer, network administrator, sailor, watchmaker, beekeeper, "
    "potter, writer, film director, botanist, economist, postman, retired shipwright, locksmith, butcher, midwife"
)
SUBJECTS = commas(
    "mathematics, physics, chemistry, computer science, law, medicine, history, philosophy, linguistics, economics, "
    "biology, music theory, civil engineering, astronomy, geography, architecture, psychology, statistics, fine arts, "
    "marine biology, geology, literature, robotics, political science"
)
HOBBIES = split(
    "chess hiking sailing gardening pottery cycling birdwatching baking knitting climbing photography painting "
    "fishing swimming reading woodworking dancing running origami astronomy surfing cooking skiing archery juggling "
    "calligraphy"
)
INSTRUMENTS = split(
    "piano violin guitar cello flute trumpet harp drums clarinet banjo accordion oboe saxophone organ ukulele bass"
)
PETS = split("cat dog parrot rabbit turtle hamster horse goat ferret canary lizard goldfish pony donkey hen tortoise")
LANGUAGES = split(
    "English French German Spanish Japanese Mandarin Arabic Hindi Portuguese Italian Korean Dutch Swedish Polish "
    "Turkish Swahili Greek Finnish Danish Russian Norwegian Czech"
)
CODE_LANGUAGES = split(
    "Go Rust Python Java Kotlin Ruby Elixir Haskell Scala Erlang TypeScript JavaScript Perl PHP Swift OCaml Lua C Zig"
)
DATABASES = split(
    "PostgreSQL MySQL SQLite Redis MongoDB Cassandra DynamoDB MariaDB Oracle Memcached Elasticsearch ClickHouse Kafka"
)
TOOLS = split(
    "Make Docker Terraform Ansible Jenkins Grafana Prometheus Kubernetes Nginx Webpack pytest Gradle Maven Bazel "
    "Cargo npm Vault Consul Sentry Datadog GitLab GitHub Jira Slack Helm Node Python Git CMake Vim"
)
LICENSES = commas("MIT, Apache, BSD, GPL, Mozilla Public, Eclipse Public, Creative Commons")
COLOURS = split(
    "red blue green yellow black white orange purple brown grey silver golden pink crimson turquoise beige violet"
)
MATERIALS = split(
    "wood steel glass copper stone clay paper wool cotton leather brass iron silk bamboo marble plastic concrete "
    "granite bronze tin oak pine linen ceramic titanium rubber cardboard felt wax aluminium"
)
MONTHS = split("January February March April May June July August September October November December")
DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SMALL = split("two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty")
RELATIVES = commas(
    "two cats, an old aunt, three brothers, a friend from school, an uncle, a neighbour, a sister, two nephews, a "
    "grandmother, a cousin, both parents, a grandfather, a colleague, a great-aunt"
)
KIN = split("mother father grandmother grandfather aunt uncle sister brother neighbour teacher cousin")
PARENTS = split("mother father")
SKILLS = commas(
    "swim, bake bread, ride a horse, tie knots, play chess, cook noodles, sail, knit, read maps, dance, sharpen "
    "knives, grow tomatoes, repair clocks, keep bees, ski, milk cows, make cheese, carve spoons, whistle, mend nets"
)
EVENT_KINDS = split(
    "festival concert meeting fair parade conference race workshop lecture exhibition market dinner auction regatta "
    "seminar reunion tournament ceremony recital excursion course picnic"
)
VEHICLES = split("bus tram ferry van bicycle car train lorry motorcycle tractor scooter boat sledge taxi")
POWERS = commas(
    "a lithium battery, solar cells, diesel, mains current, a small turbine, compressed air, batteries, gas"
)
SERVICES = split(
    "billing auth payment search email report export import image video order invoice user session metrics logging "
    "backup proxy scheduler ingest upload download notification profile catalog inventory shipping pricing checkout "
    "analytics audit config render geo chat feed sync token webhook crawler index archive ledger tax fraud review "
    "rating map weather printing translation booking calendar photo voice label"
)
SERVICE_KINDS = split("service worker daemon server API gateway backend process agent bot cluster module job")
SHOPS = commas(
    "the bakery, the town hall, the old mill, the railway station, the library, the school, the fire station, the "
    "church, the harbour, the pharmacy, the museum, the market hall, the post office, the brewery, the castle, the "
    "gift shop, the ferry landing, the community centre, the observatory, the sports hall, the theatre, the inn"
)
SPOTS = commas(
    "the kitchen, the cellar, the attic, the garden shed, the workshop, the garage, the hall, the office, the "
    "bathroom, the library, the storage room, the tower, the courtyard, the greenhouse, the laundry room, the big "
    "tent, the reading room, the laboratory, room 12, the meeting room, the back room, the canteen, the boathouse, "
    "the barn"
)
PIECES = commas(
    "the stove, the door, the window, the stairs, the piano, the oak chest, the blue cupboard, the fridge, the desk, "
    "the workbench, the mirror, the front gate, the till, the coat rack, the chimney, the water tank, the bookcase, "
    "the clock, the sink, the rain barrel, the big table, the radiator, the old oven, the entrance, the letter box"
)
ADJECTIVES = split(
    "old small large bright quiet heavy narrow wide deep tall short cold warm dry wet soft hard sharp smooth rough "
    "dark pale young modern ancient public private local main secret famous rare common simple complex broken fresh "
    "sweet bitter clean dirty empty full rich strong weak fast slow late open hidden round square flat steep calm "
    "busy noisy proud gentle tired lazy clever strange plain dusty wooden thin thick damaged missing ready loose "
    "tight rusty"
)
TOPICS = commas(
    "the history of railways, wild bees, old maps, the price of bread, the moons of Jupiter, sleep, soil, clean code, "
    "medieval bridges, the ethics of machines, lighthouses, the migration of birds, folk songs, rare minerals, ice, "
    "the future of reading, city trees, fermented food, safe passwords, small languages, glass making, tides, dyes"
)
DISHES = commas(
    "onion soup, apple cake, rye bread, lamb stew, lentil curry, potato salad, plum tart, pancakes, dumplings, "
    "risotto, lasagna, oat cookies, blueberry muffins, porridge, cheese omelette, mango chutney, pizza, noodles, fish "
    "pie, carrot cake, bean stew, tomato sauce, cinnamon rolls, walnut bread, mushroom soup, rice pudding, "
    "gingerbread"
)
FOODS = commas(
    "flour, sugar, butter, milk, salt, olive oil, garlic, rice, cream, yeast, honey, vanilla, cinnamon, lemon juice, "
    "black pepper, soy sauce, ginger, basil, spinach, cheese, chicken stock, cumin, paprika, coconut milk, cocoa "
    "powder, baking powder, celery, parsley, thyme, mustard, vinegar, yoghurt, cabbage, rye flour, cornstarch"
)
FOODS_MANY = commas(
    "eggs, onions, tomatoes, lentils, chickpeas, carrots, potatoes, mushrooms, almonds, oats, beans, walnuts, figs, "
    "apples, pears, plums, raisins, peas, olives, radishes, oysters, noodles, cherries, lemons, hazelnuts, peppers"
)
UNITS = commas(
    "grams of, cups of, tablespoons of, teaspoons of, ounces of, millilitres of, pounds of, pinches of, spoons of"
)
ANIMALS = split(
    "goats hens ducks geese sheep cows horses rabbits parrots turtles penguins otters bees donkeys pigeons swans pigs "
    "monkeys lizards frogs owls camels seals wolves foxes deer ponies peacocks snakes tortoises"
)
PLANTS = split(
    "roses tulips orchids tomatoes cucumbers beans lilies ferns carrots herbs sunflowers pumpkins onions lettuces "
    "peas strawberries radishes leeks daffodils geraniums seedlings vines dahlias cabbages"
)
THINGS = split(
    "bridge lantern tower engine window kettle basket station ship boat wagon bicycle camera clock watch mirror lamp "
    "candle table chair shelf cabinet drawer bottle bowl plate cup spoon knife pan pot oven stove fridge carpet "
    "curtain pillow blanket jacket coat shirt scarf glove boot hat belt ring necklace crown sword shield helmet drum "
    "flag map letter painting statue coin stamp key lock door gate fence wall roof fountain dam pier lighthouse "
    "windmill ladder hammer saw drill pump valve hose rope anchor sail bell whistle tent bench bucket barrel crate "
    "box bag sack trunk printer scanner keyboard screen cable switch sensor battery charger robot drone telescope "
    "microscope compass scale thermometer loom globe easel parcel ticket ledger album poster banner umbrella suitcase "
    "wheelbarrow rake shovel bookcase harness saddle carriage raft canoe kite puppet doll balloon tablecloth vase jug "
    "tray apron brush broom"
)
CODE_THINGS = split(
    "file folder table column row query string list index token header cookie session account password role option "
    "record field value message event thread lock buffer cache key request response socket path line page block cell "
    "node graph matrix date name tag template version branch commit package variable counter handler client"
)
CODE_VERBS = split(
    "get set load parse make run build read write open close find count merge split check send sort filter update"
)
ERRORS = split("ValueError KeyError TypeError TimeoutError ParseError IOError NotFound AccessDenied LimitExceeded")
TITLES = split(
    "Shadow Garden Winter River Stone Letter House Voyage Island Silence Bridge Harbour Fire Summer Salt Crow"
)
ORG_KINDS = commas(
    "Labs, Ltd, Systems, Group, Works, Brothers, and Sons, Foundation, Analytics, Software, Instruments, Foods, Press"
)
CLUBS = commas(
    "choir, chess club, rowing club, village council, book club, beekeepers' association, brass band, drama group, "
    "sports club, garden society, film club, fishing club, orchestra, youth group, hiking club, parents' council"
)
TEAMS = split(
    "platform infrastructure security design support research marketing sales finance logistics quality data mobile web"
)
AWARDS = split("Golden Silver National Royal Young Open Northern Grand Crystal Amber City Founders")
PRIZES = split("Prize Award Medal Cup Trophy Fellowship Scholarship")
TASKS = commas(
    "clean the gutters, order new chairs, write to the landlord, repair the fence, count the votes, check the brakes, "
    "paint the hall, call the plumber, buy new strings, update the website, sign the contract, water the plants, "
    "close the windows, print the posters, empty the dishwasher, sharpen the saw, book the hall, replace the filter, "
    "invite the neighbours, clear the snow, register the van, change the lock, move the shelves, label the boxes, "
    "collect the keys, tune the piano, ask for quotes, measure the cellar, feed the goats, copy the logs, open the "
    "main valve, unplug the machine, save the settings, restart the router, fill in the form, send a letter, wait for "
    "the green light, take off your shoes, wash your hands, pay the deposit"
)
