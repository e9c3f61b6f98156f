import sys
import warnings

print("noisy plugin loaded")
warnings.warn("noisy")
sys.stderr.write("noise on stderr\n")
