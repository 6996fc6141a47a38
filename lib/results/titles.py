"""Names of strategies, poolings and methods as the papers write them."""

STRATEGIES = {
    "block": "Random Block-Wise",
    "random": "Random",
    "random75": "Random (75%)",
    "attmask_low": "AttMask-Low",
    "attmask_hint": "AttMask-Hint",
    "attmask_high": "AttMask-High",
}
POOLINGS = {
    "none": "the network's own",
    "gap": "GAP",
    "max": "max",
    "gem": "GeM",
    "lse": "LSE",
    "how": "HOW",
    "otk": "OTK",
    "kmeans": "k-means",
    "slot": "Slot",
    "se": "SE",
    "ge": "GE",
    "cbam": "CBAM",
    "cls": "[CLS] (ViT)",
    "cait": "CaiT",
    "simpool": "SimPool",
}
METHODS = {"dino": "DINO", "mst": "MST", "ibot": "iBOT"}
TITLES = STRATEGIES | POOLINGS | METHODS
