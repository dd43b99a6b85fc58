"""Known mistakes, planted one at a time into a small healthy training, to test the checks of the doctor."""
