"""Shapes that drive rand_augment's tests and benchmark alike."""

# 1, 2 and 3 pixels: sharpness has no inner pixel, or one. Odd widths end inside a vector register.
SHAPES = ((1, 1, 3), (1, 7, 3), (2, 5, 1), (3, 3, 3), (17, 31, 3), (33, 64, 1), (64, 97, 3))
EMPTY_SHAPES = ((0, 4, 3), (5, 0, 1))
MAGNITUDES = (0, 1, 9, 14, 30)
BENCHMARK = ((32, 32, 3), (320, 320, 3))
