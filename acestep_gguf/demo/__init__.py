"""The demo checkpoint, with questions and pictures; README.md beside this file is its model card."""
