"""The paper's tables and figures from runs, and the analysis of a network's mistakes."""
