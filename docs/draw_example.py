"""Draws example.png, a school bus, which predict.py recognises: python docs/draw_example.py"""

import pathlib

from PIL import Image, ImageDraw

WIDTH, HEIGHT, SCALE = 480, 360, 4  # Drawn larger by SCALE, for smooth edges.
SKY, HAZE, ROAD, GRASS, LEAVES = (90, 150, 215), (215, 230, 240), (100, 100, 103), (90, 125, 60), (65, 100, 48)
YELLOW, BRIGHT, RED = (245, 180, 20), (255, 205, 70), (200, 40, 30)
BLACK, GREY, GLASS = (27, 27, 27), (165, 165, 165), (50, 67, 82)


def draw() -> Image.Image:
    """Returns an RGB image, 480 pixels wide and 360 high."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), ROAD)
    canvas = ImageDraw.Draw(image)

    def shape(method, colour, *corners, **options):
        getattr(canvas, method)([SCALE * value for value in corners], fill=colour, **options)

    for y in range(262):
        shape("rectangle", tuple(a + (b - a) * y // 262 for a, b in zip(SKY, HAZE, strict=True)), 0, y, WIDTH, y + 1)
    for x, y, radius in ((30, 185, 60), (110, 195, 45), (420, 180, 65)):
        shape("ellipse", LEAVES, x - radius, y - radius, x + radius, y + radius)
    shape("rectangle", GRASS, 0, 235, WIDTH, 262)
    shape("rounded_rectangle", YELLOW, 50, 110, 350, 275, radius=18 * SCALE)
    shape("rounded_rectangle", YELLOW, 330, 185, 425, 275, radius=14 * SCALE)
    shape("rounded_rectangle", BRIGHT, 50, 110, 350, 126, radius=8 * SCALE)
    for y, right in ((192, 348), (222, 423), (250, 423)):
        shape("rectangle", BLACK, 52, y, right, y + 5)
    for x in range(64, 322, 43):
        shape("rounded_rectangle", GLASS, x, 138, x + 34, 178, radius=4 * SCALE)
        shape("polygon", GREY, x + 6, 140, x + 18, 140, x + 6, 165)
    shape("polygon", GLASS, 326, 140, 345, 140, 362, 184, 326, 184)
    for x in (75, 300):
        shape("rectangle", RED, x, 116, x + 22, 124)
    shape("ellipse", HAZE, 408, 212, 424, 230)
    shape("rectangle", BLACK, 45, 262, 432, 274)
    for x in (115, 375):
        for radius, colour in ((32, BLACK), (15, GREY), (6, BLACK)):
            shape("ellipse", colour, x - radius, 277 - radius, x + radius, 277 + radius)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


if __name__ == "__main__":
    draw().save(pathlib.Path(__file__).with_name("example.png"), optimize=True)
