"""Write the example input files: reviews.jsonl, reviews.gold.csv, translate.jsonl, reviews.csv, texts.csv, labels.yaml.

Edit the lists below and run this script again; do not edit the JSONL by hand.

    python make_examples.py [output directory]

The output directory defaults to the one that holds this script. All texts were written
for this example. The output depends on nothing but this file.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"

LABEL_INSTRUCTION = (
    "Classify the sentiment of the review as positive, neutral or negative. "
    'Reply with one line of JSON: {"sentiment":"..."}'
)

TRANSLATE_INSTRUCTION = "Translate the sentence to {language}. Reply with the translation only."

# The true sentiment -> reviews of that sentiment.
REVIEWS: dict[str, list[str]] = {
    "positive": [
        "This kettle boils a full litre before I have found the tea bags. Quiet, sturdy and a joy to use.",
        "Best hiking socks I have ever owned. Forty kilometres in the rain and not a single blister.",
        "The headphones sound wonderful, and the battery lasts my whole working week. Worth every penny.",
        "My daughter adores this puzzle. The pieces fit perfectly and the colours are gorgeous.",
        "I was doubtful about a folding bike, but I love it. Smooth gears, light frame, easy to carry upstairs.",
        "Excellent knife. It arrived razor sharp, feels balanced, and makes chopping onions almost fun.",
        "The desk lamp gives a warm, even light and looks beautiful. I bought a second one for my sister.",
        "Fantastic customer service! They replaced a lost screw within two days and added a spare for free.",
        "These running shoes feel like clouds. My knees stopped hurting, and I beat my personal best.",
        "A superb little radio. Clear reception in the deepest valley, and the buttons are easy with gloves on.",
        "Our dog was calm within minutes of wearing this coat. It is warm, washable and great value.",
        "I am delighted with this blender. Smoothies come out silky and cleaning takes ten seconds.",
        "The tent survived a gale on the coast without a drip. Brilliant design and so quick to pitch.",
        "Lovely soft towels that dry fast and still look new after thirty washes. Highly recommended.",
        "What a great keyboard. The keys feel crisp, typing is quieter, and my wrists thank me every day.",
        "This novel kept me up until three in the morning. Funny, tender and wonderfully written.",
        "The backpack is perfect for school: strong zips, comfortable straps and room for everything.",
        "Amazing coffee grinder. Even grounds, no mess, and my espresso has never tasted better.",
        "I am so happy with these curtains. They keep the room dark and my baby finally sleeps.",
        "The app made our budget simple. Clear charts, friendly reminders, and it saved us money already.",
        "Great garden hose! It never kinks, the nozzle is excellent, and my roses have never looked happier.",
        "A beautiful watch that keeps perfect time. I get compliments on it every single week.",
        "The mattress cured my back pain in a month. I wake up rested and would buy it again.",
        "Delicious granola, not too sweet, with big crunchy nuts. The whole family fights over the last bowl.",
        "Setup of this printer took five minutes, and the photos look stunning. I could not be more pleased.",
        "These gloves are terrific: warm, waterproof, and I can still use my phone on the ski lift.",
    ],
    "neutral": [
        "The box contains one cable, two adapters and a manual. The cable is about a metre long.",
        "It is an ordinary stapler. It staples paper, takes standard refills, and sits on my desk.",
        "The mug is blue and holds three hundred millilitres. It is neither better nor worse than my old one.",
        "I ordered this shelf on Monday and it came on Thursday. It has four boards and eight screws.",
        "An average notebook. The paper is fine, the cover is plain, and the price is what you would expect.",
        "The charger works as described. It gets a little warm, like most chargers of this size.",
        "I have used this soap for a week. It smells of lemon and cleans about as well as any other.",
        "The film runs for two hours and follows a family of bakers. Some scenes drag, others are good.",
        "The jacket comes in grey and green, with two pockets. I usually wear medium and bought a medium.",
        "These are standard batteries. I put them in a clock last month and the clock is still running.",
        "The speaker is okay. Sound is clear at low volume, less so at high volume, as usual at this price.",
        "The update changed the menu from the left side to the top. Otherwise the app is the same as before.",
        "A plain white umbrella with a wooden handle. I have opened it twice so far, both times indoors.",
        "The rice cooker has three settings and a one metre cord. I have only tried the first setting.",
        "It is a phone case. It covers the phone, the buttons can be pressed, and it weighs forty grams.",
        "The rug measures two metres by three. Colour matches the picture; texture is medium, not soft and not rough.",
        "The hotel room had a bed, a desk and a window facing the street. Breakfast was served until ten.",
        "I bought this scale for the office. It shows grams or ounces and runs on two small batteries.",
        "Some parts of the course were useful and some were not. It takes about six hours in total.",
        "The toothbrush has a medium head and a two minute timer. I have no strong opinion about it.",
    ],
    "negative": [
        "The zip broke on the second day and the shop refuses to answer my emails. Avoid this suitcase.",
        "Terrible blender. It leaks, it screams like a jet, and it still leaves lumps in everything.",
        "I hate this chair. My back hurts after ten minutes and the armrest is already loose.",
        "The phone freezes every hour and the battery is dead by lunch. A complete waste of money.",
        "These shoes fell apart in a week. The glue stinks and the soles are slippery and dangerous.",
        "Awful coffee: stale, bitter and burnt. I threw the whole bag in the bin.",
        "The vacuum cleaner has no suction at all. It just pushes crumbs around and smells of burning plastic.",
        "Very disappointed. The dress looked nothing like the picture, and the fabric is thin and scratchy.",
        "The worst headphones I have ever bought. Constant crackling, and the left side died on Friday.",
        "The toy arrived cracked with sharp edges. My son cried, and the seller blamed us.",
        "This heater is useless. The room stays freezing and my electricity bill doubled.",
        "The book is boring, full of errors, and the ending is an insult. I regret buying it.",
        "Do not buy this tent. Water poured in during light rain and a pole snapped the first night.",
        "The router drops the connection every evening. Support was rude and hung up on me twice.",
        "Horrible pillow. It smells of chemicals, goes flat at once, and gives me a stiff neck.",
        "The pan lost its coating after three eggs. Now everything sticks and black flakes end up in our food.",
        "A month late, wrong colour, and missing half the screws. I want my money back.",
        "The app crashes whenever I open it and deleted all my photos. I am furious.",
        "Poor quality scissors. They bend paper instead of cutting it, and the handle hurts my hand.",
        "Disgusting snack bars. They taste like cardboard and one of them was mouldy.",
        "The watch stopped after nine days and the strap gave me a rash. Cheap rubbish.",
        "The printer jams on every page and eats ink like mad. I have never been so annoyed.",
        "The garden lights failed after one rainy night. Badly made, overpriced, and impossible to return.",
        "The mattress sags in the middle and I wake up sore every morning. An expensive mistake.",
        "This lock is a joke. My neighbour opened it with a hairpin, and my bike is gone.",
        "The paint peeled within days and the smell gave us headaches. I would give zero stars if I could.",
    ],
}

# The language's code -> sentences to translate to it.
SENTENCES: dict[str, list[str]] = {
    "de": [
        "The train to Berlin leaves in ten minutes.",
        "My brother bakes fresh bread every Sunday morning.",
        "Please close the window before it starts to rain.",
        "The small cat sleeps under the kitchen table.",
        "We are looking for a quiet hotel near the river.",
        "She reads a book in the garden.",
        "The children built a castle out of sand.",
        "I would like a cup of coffee with milk, please.",
        "The meeting starts at nine o'clock tomorrow.",
        "He forgot his umbrella on the bus again.",
        "Our neighbours have two dogs and a noisy parrot.",
        "The museum is closed on Mondays.",
        "Can you tell me where the station is?",
        "In winter the lake is covered with ice.",
        "The doctor says that I should sleep more.",
        "They walked slowly through the old town.",
        "This soup needs a little more salt.",
        "The new bridge will be open in spring.",
        "My grandmother still writes letters by hand.",
        "The blue bicycle belongs to my sister.",
        "It was so cold that the pipes froze.",
        "We planted an apple tree behind the house.",
        "The teacher explained the problem once more.",
        "I lost my keys somewhere between home and work.",
        "The shop sells fruit, bread and cheese.",
        "Tomorrow we are going to visit our friends.",
        "The moon is very bright tonight.",
        "He plays the piano better than his father.",
        "The letter arrived three days too late.",
        "She has lived in this city for ten years.",
        "Nobody knew the answer to the last question.",
        "The farmer sells his eggs at the market.",
        "Our flight was delayed because of the fog.",
        "I am learning to swim this summer.",
        "The red house on the hill is empty.",
        "Thank you very much for your help.",
    ],
    "fr": [
        "The bakery on the corner opens at six.",
        "My sister works in a small hospital in the mountains.",
        "Do you have a table for four people?",
        "The old clock in the hall has stopped.",
        "We drank tea and talked until midnight.",
        "The boat crosses the river twice a day.",
        "I need a ticket to Paris, please.",
        "The garden is full of yellow flowers.",
        "He lost his hat in the wind.",
        "The library closes early on Saturdays.",
        "Her dog is afraid of thunder and fireworks.",
        "The children are singing in the next room.",
        "It will be warm and sunny this weekend.",
        "I have never seen such a beautiful beach.",
        "The painter mixes red and white to make pink.",
        "Where did you buy this delicious cheese?",
        "The road to the village is narrow and steep.",
        "My father repairs old radios in the cellar.",
        "She answered the letter the same evening.",
        "The film was long, but we enjoyed it.",
        "Please leave your wet shoes at the door.",
        "The bird built its nest above our window.",
        "We are going to the market this morning.",
        "The student has finished her homework.",
        "There is a white horse in the field.",
        "I called you twice yesterday afternoon.",
        "The soup is hot, so be careful.",
        "His uncle owns a vineyard in the south.",
        "The bus was full, and we had to stand.",
        "You can pay by card or in cash.",
        "The snow melted in a single night.",
        "Our team won the last match of the season.",
        "The baby laughs when the cat jumps.",
        "I would rather stay at home tonight.",
        "They sold their house and bought a boat.",
        "Good morning, how did you sleep last night?",
    ],
}

LANGUAGES = {"de": "German", "fr": "French"}

TABLE_ROWS = 12
LABELS = """\
instructions: The text is a customer's review of a product.
labels:
  positive: the customer is happy with it
  neutral: facts only, or praise and blame in equal parts
  negative: the customer is unhappy with it
"""

LABEL_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "label",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"sentiment": {"type": "string", "enum": list(REVIEWS)}},
            "required": ["sentiment"],
            "additionalProperties": False,
        },
    },
}


def mixed(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs, spread in a fixed order so that neighbours differ in label.

    Stepping through the list by a prime that does not divide its length meets every
    item once.
    """
    step = next(prime for prime in (29, 31, 37) if len(pairs) % prime)
    return [pairs[i * step % len(pairs)] for i in range(len(pairs))]


def request(custom_id: str, system: str, user: str, max_tokens: int, **extra: object) -> dict[str, Any]:
    """One line of an OpenAI Batch input file."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": user},
            ],
            **extra,
            "temperature": 0,
            "max_tokens": max_tokens,
        },
    }


def review_requests() -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The labelling requests, and (custom_id, true sentiment) for each of them."""
    requests: list[dict[str, Any]] = []
    gold: list[tuple[str, str]] = []
    pairs = [(label, text) for label, texts in REVIEWS.items() for text in texts]
    for number, (label, text) in enumerate(mixed(pairs), start=1):
        custom_id = f"review-{number:03d}"
        requests.append(request(custom_id, LABEL_INSTRUCTION, text, 16, response_format=LABEL_FORMAT))
        gold.append((custom_id, label))
    return requests, gold


def translate_requests() -> list[dict[str, Any]]:
    """The translation requests, one language after the other."""
    return [
        request(
            f"{code}-{number:03d}",
            TRANSLATE_INSTRUCTION.format(language=LANGUAGES[code]),
            sentence,
            48,
            # A small model goes on to talk about grammar.
            stop=["\n"],
        )
        for code, sentences in SENTENCES.items()
        for number, sentence in enumerate(sentences, start=1)
    ]


def write_jsonl(path: Path, requests: list[dict[str, Any]]) -> None:
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in requests]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_csv(path: Path, header: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_tables(out: Path, reviews: list[dict[str, Any]]) -> None:
    """The short tables and the labels of docs/guides."""
    rows = [(item["custom_id"], item["body"]["messages"][-1]["content"]) for item in reviews[:TABLE_ROWS]]
    write_csv(out / "reviews.csv", ("id", "review"), rows)
    write_csv(out / "texts.csv", ("id", "text"), [(str(n), text) for n, text in enumerate(SENTENCES["de"][:6], 1)])
    (out / "labels.yaml").write_text(LABELS, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example input files.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    reviews, gold = review_requests()
    write_jsonl(out / "reviews.jsonl", reviews)
    write_csv(out / "reviews.gold.csv", ("custom_id", "sentiment"), gold)
    write_tables(out, reviews)
    translations = translate_requests()
    write_jsonl(out / "translate.jsonl", translations)
    print(f"{len(reviews)} reviews and {len(translations)} translations in {out}")


if __name__ == "__main__":
    main()
