"""Writes the label table of the default model: labels.json, made from WordNet.

    python tools/make_imagenet_labels.py --wordnet /usr/share/wordnet/data.noun \
        --synsets timm/data/_info/imagenet_synsets.txt --out models/weights/vtag-base/labels.json
    python tools/make_base_head.py  # the folder's checksums cover its labels

Sources:
- WordNet 3.0, Princeton University: `data.noun` of Debian's wordnet-base 1:3.0-37. A noun's
  offset in that file is its id (n02099601 is the line that starts with 02099601).
- The 1000 classes of ILSVRC 2012 in their order: `imagenet_synsets.txt` inside timm 1.0.31
  (PyPI, Apache-2.0). Every id must be a noun of WordNet 3.0 and the order that of the ids.

Names are words that WordNet lists for the noun, with a qualifier in brackets where the word
alone would mislead. Roll-ups are chosen here by hand, their members by hypernyms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vtag.models.labels import Label, LabelSet

WORDNET_SHA256: Final = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
SYNSETS_SHA256: Final = "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"

# Where roughly three of four outputs and six of seven roll-ups are right: see the model card.
LEAF_THRESHOLD: Final = 0.7
ROLLUP_THRESHOLD: Final = 0.6

# The first word that WordNet lists is the name, except here.
NAMES: Final = """
n01514668 cock (rooster)
n01608432 kite (bird)
n01664065 loggerhead turtle
n01677366 iguana
n01494475 hammerhead shark
n01685808 whiptail lizard
n01755581 diamondback rattlesnake
n01774384 black widow (spider)
n01776313 tick (arachnid)
n01847000 drake (duck)
n02012849 crane (bird)
n02086079 Pekingese
n02086910 papillon (dog)
n02088094 Afghan hound
n02088238 basset hound
n02088632 bluetick (dog)
n02090379 redbone (dog)
n02096051 Airedale terrier
n02096177 cairn terrier
n02096437 Dandie Dinmont terrier
n02096585 Boston terrier
n02097298 Scottish terrier
n02098413 Lhasa apso
n02101556 clumber spaniel
n02105412 kelpie (dog)
n02108089 boxer (dog)
n02111277 Newfoundland dog
n02112137 chow chow
n02113023 Pembroke Welsh corgi
n02113186 Cardigan Welsh corgi
n02113978 Mexican hairless (dog)
n02123045 tabby cat
n02134084 polar bear
n02190166 fly (insect)
n02229544 cricket (insect)
n02231487 stick insect
n02276258 admiral (butterfly)
n02277742 ringlet butterfly
n02279972 monarch butterfly
n02281787 lycaenid butterfly
n02328150 Angora rabbit
n02389026 sorrel (horse)
n02395406 pig
n02412080 ram (sheep)
n02484975 guenon monkey
n02486261 patas (monkey)
n02488702 colobus monkey
n02492660 howler monkey
n02492035 capuchin (monkey)
n02493509 titi monkey
n02497673 ring-tailed lemur
n02509815 red panda
n02536864 coho salmon
n02606052 rock beauty (fish)
n02655020 pufferfish
n02704792 amphibious vehicle
n02747177 trash can
n02783161 ballpoint pen
n02788148 banister
n02797295 wheelbarrow
n02814533 station wagon
n02814860 lighthouse
n02817516 bearskin (hat)
n02835271 tandem bicycle
n02840245 ring-binder
n02869837 bonnet (hat)
n02879718 bow (weapon)
n02892201 memorial tablet
n02892767 bra
n02930766 taxi
n02939185 cauldron
n02992529 cellphone
n03014705 chest (box)
n03017168 bell
n03110669 trumpet
n03126707 crane (machine)
n03250847 drumstick (for drums)
n03337140 filing cabinet
n03447447 gondola (boat)
n03459775 radiator grille
n03483316 hair dryer
n03492542 hard disk
n03584829 smoothing iron
n03594734 blue jean
n03595614 T-shirt
n03599486 rickshaw
n03673027 ocean liner
n03680355 Loafer (shoe)
n03697007 sawmill
n03710637 maillot (tights)
n03710721 tank suit
n03761084 microwave oven
n03786901 mortar (bowl)
n03793489 computer mouse
n03803284 muzzle (for animals)
n03804744 nail (fastener)
n03825788 nipple (of a baby bottle)
n03832673 notebook computer
n03854065 pipe organ
n03873416 boat paddle
n03929660 plectrum
n03947888 pirate ship
n03950228 pitcher (jug)
n03954731 carpenter's plane
n03991062 flowerpot
n04019541 hockey puck
n04037443 race car
n04118776 ruler
n04141076 saxophone
n04141975 weighing machine
n04152593 CRT screen
n04243546 slot (gambling machine)
n04296562 stage (theater)
n04325704 stole (scarf)
n04350905 suit of clothes
n04355933 sunglass (lens)
n04367480 mop
n04371774 swing (seat)
n04372370 electric switch
n04389033 army tank
n04399382 teddy bear
n04417672 thatched roof
n04428191 threshing machine
n04493381 tub (vat)
n04515003 upright piano
n04517823 vacuum cleaner
n04523525 vault (ceiling)
n04554684 washing machine
n04606251 wreck (ship)
n06359193 website
n07579787 plate (of food)
n07697537 hot dog
n07742313 Granny Smith (apple)
n07747607 orange (fruit)
n10148035 bridegroom
n12620546 rose hip
n13133613 ear (of grain)
n15075141 toilet paper
"""

# id, name, then corrections: "+id" adds what lies below another noun, "-id" leaves out what
# WordNet's hypernyms would bring in and nobody looking for the name would want.
ROLLUPS: Final = """
n00015388 animal
n01861778 mammal
n02084071 dog
n02087551 hound
n02092468 terrier
n02101108 spaniel
n02099029 retriever
n02104523 shepherd dog
n02113335 poodle
n02114100 wolf
n02118333 fox
n02121808 cat
n02127808 big cat
n02131653 bear
n02469914 primate
n02484322 monkey
n02470325 ape
n02503517 elephant
n02062017 aquatic mammal
n02062744 whale
n02323902 rabbit or hare
n02329401 rodent
n01874434 marsupial
n02370806 hoofed mammal
n02374149 equine
n02401031 bovid
n02419796 antelope
n01503061 bird
n01524359 songbird
n01604330 bird of prey
n01816887 parrot
n01844917 aquatic bird
n01845132 waterfowl
n02000954 wading bird
n02021795 seabird
n01661091 reptile
n01726692 snake
n01674464 lizard
n01662784 turtle
n01696633 crocodilian
n01627424 amphibian
n01639765 frog
n01629276 salamander
n02512053 fish
n01482330 shark
n02159955 insect
n02164464 beetle
n02274259 butterfly
n01772222 spider
n01974773 crustacean
n01976957 crab
n01982650 lobster
n01940736 mollusk
n04524313 vehicle -n03773504 +n04019101
n03791235 motor vehicle +n02924116 +n03791053
n02958343 car
n04490091 truck -n03770679
n04520170 van
n02924116 bus
n02834778 bicycle
n03790512 motorcycle +n03791053
n04468005 train +n03684823 +n02959942
n03684823 locomotive
n02970849 cart
n04235291 sled
n03764276 military vehicle
n04530566 watercraft
n02858304 boat
n04194289 ship
n04128837 sailing vessel
n02686568 aircraft
n07555863 food +n00021265 -n07565083
n07705931 fruit
n07707451 vegetable -n07711569
n07679356 bread -n07871810
n07557434 dish (food)
n07695965 sandwich
n07609840 dessert
n07881800 drink
n03800933 musical instrument
n04338517 stringed instrument
n03467517 guitar
n03928116 piano
n03614532 keyboard instrument
n04586932 wind instrument
n04598582 woodwind
n02891788 brass instrument
n03915437 percussion instrument
n03405725 furniture
n04161981 seat
n03001627 chair
n04379243 table +n03201208
n02818832 bed +n02766320 +n04344873
n03636248 lamp +n04380533
n03051540 clothing -n04162706 +n03380867
n03497657 hat
n03502509 headgear
n03513137 helmet
n03380867 footwear
n04371563 swimsuit
n03057021 coat
n04230808 skirt
n03815615 necktie
n04370048 sweater
n04272054 glasses +n04355933
n02739668 armor
n02773037 bag
n02883344 box
n02876657 bottle
n02801938 basket
n03438257 drinking glass
n03101986 cookware
n02880940 bowl
n04451818 tool
n03997484 power tool
n04565375 weapon -n03773504 -n04008634
n03467984 gun
n03906997 pen
n04447443 toiletry
n03278248 electronic equipment +n03082979 +n02942699 +n04404412 +n04041544 +n03691459
  +n03759954 +n04074963 +n04009552 +n03793489 +n04152593 +n03492542 -n06359193 -n04238763
n03082979 computer -n06359193 -n04238763
n03614007 keyboard
n03211117 display +n04404412 +n03782006
n04401088 telephone
n02942699 camera
n03528263 home appliance
n03620052 kitchen appliance
n04437953 timepiece
n03046257 clock
n02913152 building -n03529860 +n02980441 +n04005630
n03953416 place of worship
n03748162 shop
n02898711 bridge
n03327234 fence
n04285146 sports equipment -n03445924 +n02778669 +n04039381 +n04019541 +n04228054
n02778669 ball -n04023962
n03472232 gymnastic apparatus
n04571292 free weight
n03964744 toy +n04028315 +n03944341
n04028315 puzzle
n11669921 flower
n12992868 fungus +n07734744
n09287968 landscape
n09359803 mountain
n09433442 shore
"""


@dataclass(frozen=True)
class Noun:
    """One line of data.noun: its words, and the ids of its hypernyms (instances included)."""

    words: tuple[str, ...]
    above: tuple[str, ...]


def read_nouns(path: Path) -> dict[str, Noun]:
    """Every noun of WordNet by its id. Format: wndb(5WN)."""
    nouns = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence, which opens the file
            continue
        fields = line.split(" | ")[0].split()
        word_count = int(fields[3], 16)
        words = tuple(w.replace("_", " ") for w in fields[4 : 4 + 2 * word_count : 2])
        pointers = fields[5 + 2 * word_count :]
        above = tuple(
            f"n{pointers[at + 1]}"
            for at in range(0, len(pointers) - 3, 4)
            if pointers[at] in ("@", "@i")
        )
        nouns[f"n{fields[0]}"] = Noun(words, above)
    return nouns


def everything_above(nouns: dict[str, Noun], noun_id: str) -> set[str]:
    """The noun itself and all its hypernyms, along every path."""
    found, todo = set(), [noun_id]
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo += nouns[at].above
    return found


def leaf_name(nouns: dict[str, Noun], noun_id: str, chosen: dict[str, str]) -> str:
    """The name of an output; refused unless WordNet lists it for that noun."""
    words = nouns[noun_id].words
    name = chosen.get(noun_id, words[0])
    if re.sub(r" \(.*\)$", "", name) not in words:
        raise SystemExit(f"{noun_id}: WordNet does not call it {name!r} but {', '.join(words)}")
    return name


def read_rollups(nouns: dict[str, Noun], leaves: list[str]) -> dict[str, tuple[str, set[str]]]:
    """Name and members of every roll-up in the table, by its id."""
    above = {leaf: everything_above(nouns, leaf) for leaf in leaves}
    rollups: dict[str, tuple[str, set[str]]] = {}
    for line in ROLLUPS.replace("\n  ", " ").strip().splitlines():
        row = re.fullmatch(r"(n\d{8}) ([^+-]+?)((?: [+-]n\d{8})*)", line)
        if row is None:
            raise SystemExit(f"can not read the roll-up {line!r}")
        noun_id, name, corrections = row.groups()
        members = {leaf for leaf in leaves if noun_id in above[leaf]}
        for correction in corrections.split():
            part = {leaf for leaf in leaves if correction[1:] in above[leaf]}
            if not part or (correction[0] == "-") != (part <= members):
                raise SystemExit(f"{line!r}: {correction} changes nothing")
            members = members | part if correction[0] == "+" else members - part
        if len(members) < 2:
            raise SystemExit(f"{line!r}: fewer than two members")
        rollups[noun_id] = (name, members)
    return rollups


def nearest(
    members: set[str], label_id: str, rollups: dict[str, tuple[str, set[str]]]
) -> list[str]:
    """Ids of the roll-ups that hold all these members and no smaller one in between."""
    holding = {i: m for i, (_, m) in rollups.items() if members <= m and i != label_id}
    return [i for i, mine in holding.items() if not any(m < mine for m in holding.values())]


def make_labels(nouns: dict[str, Noun], leaves: list[str]) -> LabelSet:
    """The whole table: 1000 outputs in ImageNet's order, then the roll-ups, small ones first."""
    chosen = dict(line.split(" ", 1) for line in NAMES.strip().splitlines())
    if unknown := set(chosen) - set(leaves):
        raise SystemExit(f"names for what is no output: {', '.join(sorted(unknown))}")
    rollups = read_rollups(nouns, leaves)
    outputs = [
        Label(
            id=leaf,
            name=leaf_name(nouns, leaf, chosen),
            parents=tuple(nearest({leaf}, leaf, rollups)),
            threshold=LEAF_THRESHOLD,
        )
        for leaf in leaves
    ]
    sums = [
        Label(
            id=noun_id,
            name=name,
            parents=tuple(nearest(members, noun_id, rollups)),
            threshold=ROLLUP_THRESHOLD,
            members=tuple(leaf for leaf in leaves if leaf in members),
        )
        for noun_id, (name, members) in rollups.items()
    ]
    return LabelSet([*outputs, *sums])


def write_table(labels: LabelSet, path: Path) -> None:
    """Writes the table to the byte as a model folder holds it."""
    text = json.dumps(labels.to_list(), indent=1, sort_keys=True, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def checked(path: Path, sha256: str) -> Path:
    """The path, if the file is the very one this table was made from."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path}: sha256 is {found}, expected {sha256}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet/data.noun"))
    parser.add_argument("--synsets", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("models/weights/vtag-base/labels.json"))
    args = parser.parse_args()
    nouns = read_nouns(checked(args.wordnet, WORDNET_SHA256))
    leaves = checked(args.synsets, SYNSETS_SHA256).read_text().split()
    if len(leaves) != 1000 or leaves != sorted(leaves) or not set(leaves) <= set(nouns):
        raise SystemExit(f"{args.synsets}: not the 1000 WordNet nouns of ILSVRC 2012 in order")
    labels = make_labels(nouns, leaves)
    write_table(labels, args.out)
    print(f"{args.out}: {labels}")


if __name__ == "__main__":
    main()
