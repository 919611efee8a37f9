"""Attribution: which parts of the input a network's score depends on, and how good the map is."""
