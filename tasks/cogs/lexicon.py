"""The words of COGS: nouns, names and verbs by class, and the verbs' inflected forms.

Derived from the four official files of https://github.com/najoungkim/COGS (commit 165a7b66; MIT
licence, copyright (c) 2020 najoungkim). A word's class is the role it is seen in there: a noun that
is ever an agent or a recipient is animate, the object of ``on``, ``in`` or ``beside`` is a place, a
verb whose subject is its theme when it has no object is unaccusative.

Every class is in the order of frequency in the in-distribution rows (ties alphabetical), which is
the rank that the Zipf distribution of the sentence grammar wants. Words that the official training
file shows once, or only as a primitive, stand apart in ``EXPOSED``.
"""

from __future__ import annotations

import functools


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    Emma Liam Olivia Noah Ava William Isabella James Sophia Charlotte Oliver Benjamin Mia Elijah
    Amelia Harper Lucas Mason Evelyn Logan Emily Ethan Abigail Elizabeth Jacob Alexander Mila
    Michael Daniel Henry Camila Ella Aria Avery Jackson Sofia Sebastian Matthew Madison Victoria
    Samuel Scarlett Luna Aiden David Layla Jack Owen Grace Penelope Riley Jaxon Chloe Nora Wyatt
    Grayson Carter Luke Aubrey Ellie John Joshua Lily Stella Zoey Brooklyn Christopher Hannah
    Lillian Skylar Theodore Isaac Hazel Joseph Anthony Gabriel Ryan Asher Savannah Mateo Natalie
    Caleb Thomas Andrew Bella Levi Eleanor Leah Zoe Audrey Dylan Jayden Violet Aurora Addison
    Claire Julian Leo Lincoln Nathan
""")
"""Proper names; constants of the logical form."""

ANIMATE_NOUNS = _words("""
    girl boy cat dog baby child teacher frog chicken mouse lion bear monkey horse giraffe duck
    bird bunny butterfly monster sailor professor penguin lawyer student hero scientist princess
    customer crocodile bee goose cow donkey president fly moose tiger manager zebra deer hen
    fish pig kitty kid doctor queen director patient squirrel turkey wolf father king lamb puppy
    writer sheep host pupil mother consumer creature friend guy poet turtle pony visitor
    resident citizen soldier guest prince prisoner duke coach buyer priest passenger tourist
    captain journalist producer driver champion farmer landlord tenant politician dealer
    governor researcher chief judge human servant spokesman guard
""")
"""Common nouns that can be agent, recipient or theme."""

INANIMATE_NOUNS = _words("""
    cake donut cookie box rose drink raisin melon sandwich strawberry ball balloon block bat
    book chalk crayon doll game glue lollipop biscuit hamburger banana pretzel muffin pancake
    potato pen pickle yogurt sweetcorn jigsaw pizza pencil pumpkin shoe brush cracker toy cloud
    present radio scarf spoon pillow chair mandarin hammer gumball jacket knife ring basket
    clock flower towel bottle bucket can cup plate weapon hat jar penny toothbrush guitar
    newspaper watch shirt soap beer fruit tool bell crown flag brick mirror bowl purse fig
    molecule plant coin key liver needle brain chemical seed crystal leaf wine bean button bag
    shell nail
""")
"""Common nouns that can only be theme."""

PLACE_NOUNS = {
    "on": _words("""
    table stage bed chair stool road tree box speaker computer surface seat boat rock cabinet
    desk bowl bench cloth plate shelf TV pedestal sheet sofa piano ladder paper barrel bible
    book log pad tiger leaflet pillow throne yacht blanket coffin cupboard gravel notebook towel
    bag canvas carpet counter dog panel rug tray tripod windowsill ball beach booklet branch cat
    corpse cushion glacier stand cake chessboard deck hanger mound platter rag sock stack
    trampoline truck block bun cookie couch floor futon keyboard machine mattress napkin train
    bike board cot crack device leaf plaque podium rack tabletop vessel boulder brick dish
    turntable
    """),
    "in": _words("""
    house room car garden box glass cup bag hole cot bottle vehicle storage cabinet vessel
    barrel pit pot shoe envelope tin can soup basin bin bush tent vase dumpster cupboard parcel
    van wardrobe well blender coffin container drawer sack sink bucket crate bakery china closet
    cylinder haystack nest puddle stadium tower tube fridge mug package penthouse truck backpack
    bathtub bun bunker cage condo corner kennel pile refrigerator shoebox train trunk backyard
    basket cart dungeon fishbowl hammock microwave pool saucepan swamp taxi trailer cafe casket
    crib pyramid spaceship teapot trap cubicle jeep palace pod tomb wagon bookstore castle jar
    tub monastery
    """),
    "beside": _words("""
    table stage bed chair book road machine tree seat house speaker car computer rock bag cup
    bottle vehicle box glass cabinet key painting boat cassette desk flower bucket shoe whale TV
    cage cat lion poster trophy hedge surgeon baron bat crystal headmaster log mirror sword toy
    bench doll dragon duck foreigner helicopter nest sink torch truck wolf basket chemist clock
    giant philosopher piano rod sculpture statue tent barrel broker keyboard pillar throne
    trainee bear beast bush corpse fox ladder skull sphere stool bike cylinder genius lamp lemon
    monk monkey murderer valve worm bicycle bin gardner hammer pepper sailor warrior yacht
    """),
}
"""Preposition -> common nouns that may follow it."""

UNERGATIVE = _words("""
    sleep smile laugh sneeze cry dance talk nap walk jog scream stutter run scoff snore smirk
    gasp snooze giggle frown
""")
"""Verbs without object whose subject is the agent: ``The dog slept .``"""

UNACCUSATIVE = _words("""
    roll freeze burn float shorten slide grow break crumple split decompose change collapse
    double snap disintegrate improve redden enlarge inflate
""")
"""Verbs whose subject is the theme when there is no object: ``The cake rolled .``"""

OBJECT_OMISSIBLE = _words("""
    eat paint draw clean cook sketch dust hunt nurse call hear notice pack juggle see observe
    know investigate study examine
""")
"""Transitive verbs that may drop the object: ``The dog ate .``"""

TRANSITIVE = _words("""
    like help find love poke adore admire appreciate tolerate respect miss throw hold value
    pierce touch worship discover stab toss
""")
"""Transitive verbs that keep their object."""

DATIVE = _words("""
    give lend sell offer feed pass send rent award serve bring hand return promise forward post
    mail slip loan wire
""")
"""Verbs with theme and recipient, in either order."""

CLAUSE_TAKING = _words("""
    like hope say notice believe confess prove declare think support admire appreciate dream
    value wish tolerate mean respect expect imagine
""")
"""Verbs with an embedded sentence: ``Emma hoped that ...``"""

INFINITIVE_TAKING = _words("""
    want prefer need intend try plan attempt expect hope wish crave enjoy like hate long yearn
    dream mean love itch
""")
"""Verbs with an infinitive: ``Emma wanted to ...``"""

INFINITIVES = _words("""
    walk run sleep nap sneeze eat hunt read cook talk dance giggle paint jog call smirk sketch
    investigate dust clean
""")
"""Verbs seen as the infinitive of those."""

EXPOSED = {
    "subject_common": "hedgehog",
    "object_common": "cockroach",
    "primitive_common": "shark",
    "subject_proper": "Lina",
    "object_proper": "Charlie",
    "primitive_proper": "Paula",
    "transitive_subject": "cobra",
    "unaccusative_subject": "hippo",
    "active": "bless",
    "passive": "squeeze",
    "object_omitted": "bake",
    "unaccusative": "shatter",
    "to_dative": "ship",
    "double_object_dative": "teleport",
    "primitive_verb": "crawl",
}
"""The one role in which training shows a word -> that word."""

IRREGULAR_FORMS = _words("""
    break/broke/broken bring/brought draw/drew/drawn eat/ate/eaten feed/fed find/found
    freeze/froze/frozen give/gave/given grow/grew/grown hear/heard hold/held jog/jogged
    know/knew/known mean/meant nap/napped plan/planned prefer/preferred run/ran say/said
    see/saw/seen sell/sold send/sent ship/shipped sleep/slept slide/slid slip/slipped
    snap/snapped split/split stab/stabbed think/thought throw/threw/thrown worship/worshipped
""")
"""lemma/past[/participle] of the verbs that do not just take -ed, as ``lend`` does here."""


@functools.cache
def inflect(lemma: str) -> tuple[str, str]:
    """Return the past tense and the participle of a verb.

    >>> inflect("eat"), inflect("study"), inflect("lend")
    (('ate', 'eaten'), ('studied', 'studied'), ('lended', 'lended'))
    """
    if lemma in _IRREGULAR:
        past, *participle = _IRREGULAR[lemma]
        return past, (participle or [past])[0]
    if lemma.endswith("e"):
        regular = lemma + "d"
    elif lemma.endswith("y") and lemma[-2] not in "aeiou":
        regular = lemma[:-1] + "ied"
    else:
        regular = lemma + "ed"
    return regular, regular


_IRREGULAR = {forms.split("/")[0]: forms.split("/")[1:] for forms in IRREGULAR_FORMS}
