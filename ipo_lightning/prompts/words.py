"""Words of which prompts are composed: subjects, what they do, and where it can be seen.

What goes together is filed together: an action knows the kinds of places in which it happens, so
that whatever is drawn can be filmed.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Deed(NamedTuple):
    """What somebody or something does, and the kinds of places, of `PLACES`, where it can be."""

    doing: str
    places: tuple[str, ...]


PLACES: Mapping[str, tuple[str, ...]] = {
    "kitchen": (
        "in a sunlit farmhouse kitchen", "at a narrow counter in a ship's galley",
        "in a busy restaurant kitchen", "beside the stove of a mountain hut",
    ),
    "room": (
        "in an attic with slanted windows", "in a quiet library between tall shelves",
        "in a hotel lobby with marble floors", "in a greenhouse full of ferns",
        "on the stage of an empty theatre", "in a waiting room with green chairs",
    ),
    "workshop": (
        "in a cluttered repair shop", "at a long bench under a bare bulb",
        "in a barn with open doors", "in a bright studio with white walls",
    ),
    "street": (
        "on a cobbled lane after rain", "at a crossing between glass towers",
        "under the awnings of a night market", "along a canal lined with narrow houses",
        "on the steps of an old courthouse", "in a courtyard hung with laundry",
    ),
    "nature": (
        "in a meadow full of poppies", "between birches in late autumn",
        "on a ridge above the clouds", "beside a stream in a mossy valley",
        "among sandstone boulders", "at the edge of a frozen pond",
        "in tall grass on a windy hill",
    ),
    "shore": (
        "on a pebble beach at low tide", "on a wooden pier in the fog",
        "between dunes near the sea", "on black rocks below a lighthouse",
    ),
    "stable": (
        "behind a weathered fence", "in a snowy paddock", "on a dusty farm track",
        "beside a haystack",
    ),
    "branches": (
        "in a blossoming cherry tree", "on a branch over a slow river",
        "high in a pine forest", "on a mossy garden wall",
    ),
    "sky": (
        "above a patchwork of fields", "over a harbour full of masts",
        "between towering summer clouds", "above a canyon of red rock",
        "over snow-covered rooftops",
    ),
    "reef": (
        "between swaying kelp", "over a garden of soft corals", "above a sunken rowing boat",
        "through shafts of light under the surface",
    ),
    "savanna": (
        "on a plain dotted with acacias", "at a shrinking waterhole", "through dry golden grass",
        "beneath a lone baobab",
    ),
    "road": (
        "along a coast road above cliffs", "across a desert of white sand",
        "through a tunnel of plane trees", "over a bridge of rusted steel",
        "down a hairpin bend in the mountains", "through a town of timber houses",
        "past fields of sunflowers",
    ),
    "rails": (
        "across a stone viaduct", "through a gorge with waterfalls",
        "past terraced rice fields", "out of a dark tunnel into the sun",
        "along the shore of a wide lake",
    ),
    "water": (
        "on a lake ringed by mountains", "between drifting slabs of ice",
        "through a mangrove channel", "past a row of stilt houses",
        "across a bay with calm water", "under a low brick bridge",
    ),
}  # fmt: skip

PEOPLE = (
    "An elderly fisherman", "A woman in a yellow raincoat", "A teenage boy with headphones",
    "A firefighter", "A bearded carpenter", "A girl with braided hair", "A retired sailor",
    "A young doctor", "A man in a linen suit", "A nurse with rolled-up sleeves", "A postman",
    "A tattooed barber", "A grandmother in a knitted shawl", "A boy in muddy boots",
    "A ballet student", "A mountaineer", "A street musician", "A woman with silver hair",
    "A tired baker", "A beekeeper", "A man in a tweed cap", "A schoolteacher",
    "A scientist in a lab coat", "A shepherd",
)  # fmt: skip
HUMAN = (
    Deed("kneading dough", ("kitchen",)),
    Deed("tasting soup from a wooden spoon", ("kitchen",)),
    Deed("chopping carrots", ("kitchen",)),
    Deed("pouring tea into a blue cup", ("kitchen", "room", "street")),
    Deed("playing a cello", ("room", "street", "workshop")),
    Deed("tuning an old guitar", ("room", "workshop", "shore")),
    Deed("dancing alone", ("room", "street", "shore", "nature")),
    Deed("winding a grandfather clock", ("room", "workshop")),
    Deed("folding a paper crane", ("room", "workshop", "kitchen")),
    Deed("carving a wooden horse", ("workshop", "nature", "stable")),
    Deed("mending a fishing net", ("workshop", "shore")),
    Deed("sharpening a pencil with a knife", ("workshop", "room")),
    Deed("shaping a clay vase", ("workshop",)),
    Deed("juggling three oranges", ("street", "room", "shore", "kitchen")),
    Deed("riding a bicycle", ("street", "shore", "nature")),
    Deed("opening a large umbrella", ("street", "shore", "nature")),
    Deed("eating noodles", ("street", "kitchen")),
    Deed("skipping rope", ("street", "stable", "room")),
    Deed("flying a red kite", ("shore", "nature")),
    Deed("skipping stones", ("shore",)),
    Deed("picking mushrooms", ("nature",)),
    Deed("pitching a tent", ("nature", "shore")),
    Deed("practising tai chi", ("nature", "shore", "street", "room")),
    Deed("sketching in a notebook", ("nature", "street", "room", "shore")),
    Deed("chopping firewood", ("nature", "stable")),
    Deed("blowing soap bubbles", ("street", "nature", "room", "stable")),
)

ANIMALS: Mapping[str, tuple[str, ...]] = {
    "land": (
        "A red fox", "A hedgehog", "A grey wolf", "A young deer", "A brown bear", "A wild boar",
        "A lynx",
    ),
    "pet": (
        "A ginger kitten", "A sheepdog", "A dachshund", "A white rabbit", "A black cat",
        "A golden retriever puppy",
    ),
    "farm": (
        "A shaggy pony", "A speckled hen", "A spotted calf", "A donkey", "A newborn lamb",
        "A goat with curved horns",
    ),
    "bird": ("A barn owl", "A blue tit", "A magpie", "A woodpecker", "A green parrot"),
    "flyer": ("A golden eagle", "A flock of starlings", "A white stork", "A pair of cranes"),
    "sea": ("A sea turtle", "An octopus", "A manta ray", "A seahorse", "A school of sardines"),
    "plains": ("A herd of zebras", "A lioness", "An elephant calf", "A giraffe", "A cheetah"),
}  # fmt: skip
ANIMAL: Mapping[str, tuple[Deed, ...]] = {
    "land": (
        Deed("sniffing at fresh snow", ("nature",)),
        Deed("drinking with pricked ears", ("nature",)),
        Deed("trotting past and looking back", ("nature",)),
        Deed("shaking water from its fur", ("nature", "shore")),
        Deed("digging with both front paws", ("nature", "shore")),
    ),
    "pet": (
        Deed("chasing a rolling ball", ("room", "street", "nature")),
        Deed("yawning and stretching", ("room", "kitchen", "workshop")),
        Deed("jumping over a fallen log", ("nature", "stable")),
        Deed("playing with a ball of wool", ("room", "workshop")),
        Deed("licking an empty bowl", ("kitchen",)),
    ),
    "farm": (
        Deed("chewing slowly", ("stable", "nature")),
        Deed("scratching itself against a post", ("stable",)),
        Deed("walking home one step at a time", ("stable", "nature")),
        Deed("standing in blowing snow", ("stable",)),
        Deed("nibbling at a straw hat", ("stable", "workshop")),
    ),
    "bird": (
        Deed("cleaning its feathers", ("branches",)),
        Deed("turning its head all the way round", ("branches",)),
        Deed("feeding three chicks", ("branches",)),
        Deed("spreading its wings and taking off", ("branches", "shore")),
        Deed("cracking a nut", ("branches",)),
    ),
    "flyer": (
        Deed("gliding in wide circles", ("sky",)),
        Deed("flying against the wind", ("sky", "shore")),
        Deed("turning sharply in flight", ("sky",)),
        Deed("descending slowly", ("sky", "shore")),
    ),
    "sea": (
        Deed("drifting weightlessly", ("reef",)),
        Deed("darting away from a shadow", ("reef",)),
        Deed("hovering above the sand", ("reef",)),
        Deed("swimming towards the camera", ("reef",)),
    ),
    "plains": (
        Deed("walking slowly into the wind", ("savanna",)),
        Deed("raising clouds of dust", ("savanna",)),
        Deed("drinking among white birds", ("savanna",)),
        Deed("resting in the shade and flicking flies away", ("savanna",)),
    ),
}

VEHICLES: Mapping[str, tuple[str, ...]] = {
    "road": (
        "A yellow school bus", "A vintage motorcycle", "A red tractor", "A silver sports car",
        "A rusty pickup truck", "A fire engine", "A mail van", "A cargo bicycle", "A camper van",
        "A convoy of trucks",
    ),
    "rails": (
        "A steam locomotive", "A high-speed train", "A blue tram", "A long freight train",
        "A rack railway carriage",
    ),
    "water": (
        "A wooden sailing boat", "A tugboat", "A white ferry", "A kayak", "A fishing trawler",
        "A paddle steamer", "A rubber dinghy",
    ),
    "sky": (
        "A hot-air balloon", "A yellow biplane", "A rescue helicopter", "A glider",
        "A silver airship", "A seaplane", "A paraglider",
    ),
}  # fmt: skip
VEHICLE: Mapping[str, tuple[Deed, ...]] = {
    "road": (
        Deed("speeding", ("road",)),
        Deed("rolling slowly with its headlights on", ("road",)),
        Deed("splashing water from deep puddles", ("road",)),
        Deed("leaving a trail of dust", ("road",)),
        Deed("braking hard", ("road",)),
    ),
    "rails": (
        Deed("rushing", ("rails",)),
        Deed("winding its way", ("rails",)),
        Deed("climbing steadily", ("rails",)),
        Deed("slowing down with sparks at its wheels", ("rails",)),
    ),
    "water": (
        Deed("cutting through the waves", ("water",)),
        Deed("turning in a wide arc", ("water",)),
        Deed("drifting without a sound", ("water",)),
        Deed("leaving a long wake", ("water",)),
        Deed("rocking in heavy rain", ("water",)),
    ),
    "sky": (
        Deed("rising higher and higher", ("sky",)),
        Deed("floating past the camera", ("sky",)),
        Deed("hanging almost still", ("sky",)),
        Deed("casting its shadow", ("sky",)),
    ),
}

SCENES = (
    "an abandoned amusement park", "a volcano's crater lake", "a lavender field",
    "a medieval castle on a hill", "a bamboo forest", "a salt flat", "a fishing village",
    "a glacier tongue", "a desert oasis", "a city of neon signs", "a Gothic cathedral",
    "an olive grove", "a waterfall in the jungle", "a railway station hall", "a coral atoll",
    "a vineyard on steep slopes", "an observatory on a summit", "a harbour with cranes",
    "a ruined temple", "a suburban street", "an ice cave", "a tulip field", "a botanical garden",
    "an old printing hall", "a wind farm", "a moorland with standing stones",
)  # fmt: skip
HAPPENINGS = (
    "Morning mist lifts from {}", "Heavy rain sweeps across {}", "The first snow settles on {}",
    "Clouds race over {}", "Evening light creeps across {}", "Lanterns light up one by one in {}",
    "Dry leaves whirl through {}", "A thunderstorm gathers over {}", "Stars wheel above {}",
    "Petals drift down over {}", "Sunbeams break through onto {}", "Dust swirls through {}",
)  # fmt: skip

FIRST = (
    "opens a battered suitcase", "lifts a glowing lantern", "puts down a heavy crate",
    "unrolls an old map", "drops a stack of papers", "lights a single candle",
    "catches a falling apple", "pulls back a velvet curtain", "wipes a fogged mirror",
    "ties a red scarf", "throws a coin into the air", "knocks over a glass of milk",
    "picks up a ringing telephone", "unwraps a small parcel", "blows dust off a book",
    "closes a creaking gate",
)  # fmt: skip
THEN = (
    "then turns around with a smile", "then walks away from the camera",
    "then kneels down to look closer", "and waves to somebody far away",
    "and bursts out laughing", "then sits down and sighs", "and takes three steps back",
    "then runs out of the frame", "and looks up at the ceiling of clouds",
    "then shakes their head slowly",
)  # fmt: skip
ACTION_PLACES = ("room", "workshop", "street", "shore", "nature")

STYLES = (
    "A watercolour painting of", "A stop-motion clay animation of", "An ink wash animation of",
    "A pixel art animation of", "A charcoal drawing of", "A paper cut-out animation of",
    "Black-and-white silent film footage of", "A 3D cartoon of", "An oil painting of",
    "A hand-drawn anime scene of", "A stained glass window that shows", "A low-poly rendering of",
    "A felt puppet film of", "A pastel storybook illustration of", "A woodcut print of",
    "Grainy home-movie footage of",
)  # fmt: skip

OUTDOORS = (
    "at golden hour", "in soft morning light", "in the blue light of dusk", "under an overcast sky",
    "in hazy light", "in the last light of the day",
)  # fmt: skip
LIGHTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(PLACES, OUTDOORS),
    **dict.fromkeys(
        ("kitchen", "room", "workshop"),
        ("in warm lamplight", "in soft morning light", "by candlelight"),
    ),
    "reef": ("in clear blue water", "in murky green water"),
}
"""Kind of place -> light in it."""
CAMERAS = (
    "The camera slowly circles.", "The camera glides forward.", "Seen from above.",
    "Filmed in slow motion.", "A close-up with a blurred background.", "A wide shot.",
    "The camera tilts upwards.", "Handheld, following closely.", "A time-lapse.",
)  # fmt: skip
