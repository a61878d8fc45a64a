"""Does the emotion in a prompt change how a language model reasons, and where in the network does it show?"""

__version__ = "0.1.0"
