"""What a step minimises: supervised fine-tuning and DPO, side by side, over the loss that both share."""
