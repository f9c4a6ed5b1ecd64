"""Virtual machines that boot from a network of the test's own."""
