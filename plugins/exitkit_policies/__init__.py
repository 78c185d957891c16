"""The exit policies that come with exitkit, one file each. They use nothing but exitkit's public names."""
