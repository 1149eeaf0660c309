"""Emoji images with names, categories and captions, out of packages of the npm registry.

The demo base learns two styles, Noto and Twemoji. The third, OpenMoji, is kept away from it: it is what people and tests
fine-tune towards. Licenses of the images are in NOTICE.

    packages = fetch_packages(folder)                    # `npm pack`, once
    emoji = list_emoji(packages)                         # names and categories
    images = load_images(packages, emoji, TRAINED_STYLES, size=64)
"""
import io
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image


class DemoBaseError(Exception):
    """Something the person at the keyboard can act on; the message says what happened and what to do."""


@dataclass(frozen=True)
class Style:
    """Where a style's images lie. `words` is what captions call it."""
    words: str
    package: str
    folder: str


NOTO = Style("noto emoji", "emoji-datasource-google@16.0.0", "package/img/google/64/")
TWEMOJI = Style("twemoji", "emoji-datasource-twitter@16.0.0", "package/img/twitter/64/")
OPENMOJI = Style("openmoji", "openmoji@15.1.0", "package/color/svg/")
TRAINED_STYLES = (NOTO, TWEMOJI)
NAMES_PACKAGE = "emojibase-data@17.0.0"
PACKAGES = (NAMES_PACKAGE, NOTO.package, TWEMOJI.package, OPENMOJI.package)

# Chance of each caption form. The empty one is what classifier-free guidance needs.
CAPTION_TEMPLATES = (
    (0.50, "{style} of a {name}"),
    (0.15, "{style} of a {name}, {category}"),
    (0.10, "a {style}, {name}"),
    (0.10, "{name}, {style}"),
    (0.05, "{style} of a {category}"),
    (0.10, ""),
)

# Caption word: the sub-groups of emojibase-data it stands for. Sub-groups not listed are left out: people, flags, signs.
CATEGORIES = {
    "face": "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-unwell face-hat "
            "face-glasses face-concerned face-negative",
    "creature": "face-costume", "heart": "heart", "symbol": "emotion",
    "hand": "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands",
    "body part": "body-parts",
    "animal": "cat-face monkey-face animal-mammal animal-amphibian",
    "bird": "animal-bird", "reptile": "animal-reptile", "sea animal": "animal-marine food-marine", "bug": "animal-bug",
    "flower": "plant-flower", "plant": "plant-other", "fruit": "food-fruit", "vegetable": "food-vegetable",
    "food": "food-prepared food-asian", "dessert": "food-sweet", "drink": "drink", "dishware": "dishware",
    "landscape": "place-geographic", "building": "place-building place-religious", "place": "place-other",
    "vehicle": "transport-ground", "boat": "transport-water", "aircraft": "transport-air", "weather": "sky-weather",
    "medal": "award-medal", "sport": "sport", "toy": "game", "art": "arts-crafts", "clothing": "clothing",
    "music": "music", "instrument": "musical-instrument", "device": "phone computer light-video",
    "book": "book-paper", "money": "money", "mail": "mail", "writing": "writing", "office": "office", "lock": "lock",
    "tool": "tool", "science": "science", "medical": "medical", "household": "household",
    "object": "event sound other-object",
}
CATEGORY_OF_SUBGROUP = {subgroup: word for word, subgroups in CATEGORIES.items() for subgroup in subgroups.split()}
KEPT_GROUPS = {"smileys-emotion", "people-body", "animals-nature", "food-drink", "travel-places", "activities", "objects"}
LEFT_OUT = re.compile("o’clock|thirty|keycap|button|arrow|SOON|symbol for|speech|thought|Japanese “")

# Common names, shown six times as often: with every name equally often a small model learns colors and round shapes only.
CORE_CATEGORIES = {"heart", "fruit", "flower"}
CORE_NAMES = set("""
grinning face|grinning face with big eyes|beaming face with smiling eyes|face with tears of joy|slightly smiling face
upside-down face|winking face|smiling face with halo|smiling face with hearts|smiling face with heart-eyes|star-struck
face blowing a kiss|face savoring food|face with tongue|zany face|money-mouth face|thinking face|zipper-mouth face
neutral face|smirking face|sleeping face|face with medical mask|nauseated face|hot face|cold face|exploding head
cowboy hat face|partying face|smiling face with sunglasses|nerd face|confused face|worried face|face with open mouth
flushed face|crying face|loudly crying face|face screaming in fear|angry face|enraged face|smiling face with horns|skull
pile of poo|clown face|ghost|alien|robot|grinning cat|cat with tears of joy
cat face|dog face|monkey face|lion|tiger face|horse face|unicorn|cow face|pig face|mouse face|hamster|rabbit face|bear
koala|panda|frog|fox|wolf|raccoon|elephant|giraffe|zebra|cat|dog|pig|camel|chicken|hatching chick|baby chick|bird
penguin|owl|duck|eagle|flamingo|parrot|crocodile|turtle|snake|lizard|whale|spouting whale|dolphin|fish|tropical fish
blowfish|shark|octopus|spiral shell|crab|lobster|shrimp|squid|snail|butterfly|bug|ant|honeybee|lady beetle|spider
potted plant|evergreen tree|deciduous tree|palm tree|cactus|four leaf clover|maple leaf|mushroom|herb|avocado|eggplant
potato|carrot|ear of corn|hot pepper|cucumber|broccoli|bell pepper|onion|garlic
bread|croissant|pretzel|bagel|pancakes|cheese wedge|hamburger|french fries|pizza|hot dog|sandwich|taco|burrito|egg
cooking|popcorn|sushi|soft ice cream|ice cream|doughnut|cookie|birthday cake|shortcake|cupcake|chocolate bar|candy
lollipop|custard|honey pot|glass of milk|hot beverage|teacup without handle|wine glass|cocktail glass|beer mug
cup with straw|rice ball
locomotive|bus|ambulance|fire engine|police car|taxi|automobile|delivery truck|tractor|racing car|motorcycle
motor scooter|bicycle|sailboat|ship|airplane|helicopter|rocket|flying saucer|house|castle|office building|tent|volcano
rainbow|cloud|sun|full moon|crescent moon|star|glowing star|fire|droplet|snowflake|snowman|snowman without snow|umbrella
umbrella with rain drops|christmas tree|jack-o-lantern|balloon|wrapped gift|ribbon|trophy|1st place medal
soccer ball|baseball|basketball|volleyball|american football|tennis|bowling|game die|teddy bear|crown|top hat
sunglasses|t-shirt|jeans|dress|running shoe|high-heeled shoe|guitar|violin|trumpet|drum|bell|key|locked|hammer|axe
scissors|light bulb|candle|closed book|green book|blue book|camera|television|laptop|telephone|magnet
envelope|pencil|gem stone|bomb|money bag
thumbs up|raised hand|victory hand|oncoming fist|eyes|eye|nose|mouth|ear|bone|tooth|brain
""".strip().replace("\n", "|").split("|"))

# Subjects of the sample data: twenty to fine-tune on, twenty others to measure on.
SAMPLE_NAMES = (
    "dog face", "fox", "red apple", "banana", "pizza", "red heart", "smiling face with sunglasses", "crying face",
    "automobile", "airplane", "house", "sunflower", "evergreen tree", "umbrella", "soccer ball", "guitar", "hot beverage",
    "bell", "whale", "frog")
HELD_OUT_NAMES = (
    "cat face", "lion", "strawberry", "watermelon", "hamburger", "yellow heart", "grinning face", "angry face", "bus",
    "rocket", "castle", "tulip", "cactus", "crown", "basketball", "violin", "teacup without handle", "key", "octopus",
    "penguin")


@dataclass(frozen=True)
class Emoji:
    hexcode: str
    name: str
    category: str


@dataclass(frozen=True)
class EmojiImages:
    """pixels uint8 [N, size, size, 3] on white; alpha uint8 [N, size, size]; styles, names, categories: text [N]."""
    pixels: np.ndarray
    alpha: np.ndarray
    styles: np.ndarray
    names: np.ndarray
    categories: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "EmojiImages":
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def indices(self, style: Style, names: tuple[str, ...]) -> list[int]:
        """Where the images of these names in this style stand, in the order of `names`."""
        position = {(str(s), str(n)): i for i, (s, n) in enumerate(zip(self.styles, self.names))}
        return [position[style.words, name] for name in names]


def fetch_packages(folder: Path) -> dict[str, Path]:
    """`npm pack` what is not in `folder` yet. Returns {package: archive}."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {package: folder / f"{package.replace('@', '-')}.tgz" for package in PACKAGES}
    missing = [package for package, archive in archives.items() if not archive.exists()]
    npm = shutil.which("npm")
    if missing and npm is None:
        raise DemoBaseError(f"npm was not found, and it is needed to fetch {', '.join(missing)}. Install Node.js, or put "
                            f"the archives that `npm pack` makes elsewhere into {folder}.")
    for package in missing:
        print(f"Fetching {package} …", flush=True)
        result = subprocess.run([npm, "pack", package, "--silent"], cwd=folder, capture_output=True, text=True)
        if result.returncode or not archives[package].exists():
            raise DemoBaseError(f"npm could not fetch {package}: {(result.stderr or result.stdout).strip()[-500:]}")
    return archives


def read_archive(archive: Path, folder: str) -> dict[str, bytes]:
    """{file name: content} of the files directly or deeper under `folder`, in one pass and without unpacking to disk."""
    try:
        with tarfile.open(archive, "r:gz") as package:
            return {member.name.removeprefix(folder): package.extractfile(member).read()
                    for member in package if member.isfile() and member.name.startswith(folder)}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DemoBaseError(f"{archive} cannot be read ({error}). Delete it and start again to fetch it anew.") from error


def clean_name(label: str) -> str:
    """Lower case, plain ASCII, no quotation marks, colons or commas: what people type in a prompt."""
    ascii_label = label.lower().replace("’", "'").encode("ascii", "ignore").decode()
    return " ".join(re.sub("[:,]", "", ascii_label).split())


def list_emoji(packages: dict[str, Path]) -> list[Emoji]:
    """Every emoji that has a category of ours, in the order of emojibase-data."""
    files = read_archive(packages[NAMES_PACKAGE], "package/en/")
    messages = json.loads(files["messages.json"])
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    subgroups = {subgroup["order"]: subgroup["key"] for subgroup in messages["subgroups"]}
    chosen = []
    for entry in json.loads(files["data.json"]):
        category = CATEGORY_OF_SUBGROUP.get(subgroups.get(entry.get("subgroup")))
        if category and groups.get(entry.get("group")) in KEPT_GROUPS and not LEFT_OUT.search(entry["label"]):
            chosen.append(Emoji(entry["hexcode"], clean_name(entry["label"]), category))
    return chosen


def find_image(files: dict[str, bytes], hexcode: str) -> tuple[str, bytes] | None:
    """(file name, content). Packages disagree about U+FE0F ("show as an image") in file names and about their case."""
    for code in (hexcode, hexcode.replace("-FE0F", ""), f"{hexcode}-FE0F"):
        for file_name in (f"{code.lower()}.png", f"{code}.svg"):
            if file_name in files:
                return file_name, files[file_name]
    return None


def crop_to_glyph(image: Image.Image, margin: float = 1.05) -> Image.Image:
    """The square around what is not transparent. OpenMoji has wide margins; Noto and Twemoji fill their square."""
    left, top, right, bottom = image.getchannel("A").point(lambda alpha: 255 * (alpha > 20)).getbbox()
    half = max(right - left, bottom - top) * margin / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))


def draw(file_name: str, content: bytes, size: int) -> Image.Image:
    """The emoji as RGBA, size × size. Noto and Twemoji come as 64 × 64 PNG; OpenMoji as SVG, cropped to its glyph."""
    if file_name.endswith(".svg"):
        try:
            import resvg_py
        except ImportError as error:
            raise DemoBaseError("OpenMoji's images are SVG: `pip install resvg-py` to draw them.") from error
        png = resvg_py.svg_to_bytes(svg_string=content.decode(), width=4 * size, height=4 * size)
        image = crop_to_glyph(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    else:
        image = Image.open(io.BytesIO(content)).convert("RGBA")
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def on_white(image: Image.Image) -> Image.Image:
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def load_images(packages: dict[str, Path], emoji: list[Emoji], styles: tuple[Style, ...], size: int) -> EmojiImages:
    """All images that the styles have of these emoji."""
    rows = []
    for style in styles:
        files = read_archive(packages[style.package], style.folder)
        found = [(one, find_image(files, one.hexcode)) for one in emoji]
        rows += [(draw(*file, size), style.words, one.name, one.category) for one, file in found if file]
    drawn, words, names, categories = zip(*rows)
    return EmojiImages(
        pixels=np.stack([np.asarray(on_white(image)) for image in drawn]),
        alpha=np.stack([np.asarray(image.getchannel("A")) for image in drawn]),
        styles=np.array(words), names=np.array(names), categories=np.array(categories))


def captions(style: str, name: str, category: str) -> list[str]:
    """One caption per template, in the order of CAPTION_TEMPLATES."""
    return [template.format(style=style, name=name, category=category) for _, template in CAPTION_TEMPLATES]


def is_core(name: str, category: str) -> bool:
    return name in CORE_NAMES or category in CORE_CATEGORIES


def contact_sheet(rows: list[list[np.ndarray]], labels: list[list[str]], scale: int = 2) -> Image.Image:
    """Images (uint8 [size, size, 3]) in rows of equal length, each under its label, in a palette of 256 colors."""
    from PIL import ImageDraw

    side, label_height, gap = rows[0][0].shape[0] * scale, 12, 4
    sheet = Image.new("RGB", (len(rows[0]) * (side + gap), len(rows) * (side + gap + label_height)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (images, texts) in enumerate(zip(rows, labels)):
        for column, (image, text) in enumerate(zip(images, texts)):
            x, y = column * (side + gap), row * (side + gap + label_height)
            pen.text((x, y), text[:side // 5], fill="black")
            sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y + label_height))
    return sheet.quantize(256)
